//! Decompressing what kernels and modules are compressed with, told apart by content.

use std::{
    io::{self, Read},
    path::Path,
};

use crate::Error;

/// The largest thing that is decompressed here, in bytes: a vmlinux with everything built in has some 100 MiB.
const MOST: u64 = 1 << 30;

/// `bytes` decompressed, or as they are if they begin with no known magic. What follows the compressed stream (a bzImage
/// appends the length) is ignored.
pub(crate) fn decompress(path: &Path, bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
    let (format, result) = match bytes.as_slice() {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => ("xz", read(liblzma::read::XzDecoder::new(&bytes[..]))),
        [0x1f, 0x8b, ..] => ("gzip", read(flate2::read::GzDecoder::new(&bytes[..]))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => (
            "zstd",
            zstd::stream::read::Decoder::with_buffer(&bytes[..])
                .and_then(|decoder| read(decoder.single_frame())),
        ),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", lz4_legacy(&bytes[4..])),
        [b'B', b'Z', b'h', ..] => ("bzip2", Err(unsupported())),
        [0x89, b'L', b'Z', b'O', ..] => ("lzo", Err(unsupported())),
        [0x5d, 0, 0, ..] => ("lzma", lzma(&bytes)),
        _ => return Ok(bytes),
    };
    result.map_err(|source| Error::Compressed { path: path.into(), format, source })
}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "this compression is not supported here")
}

fn read(decoder: impl Read) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    decoder.take(MOST + 1).read_to_end(&mut out)?;
    if out.len() as u64 > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more than 1 GiB when decompressed"));
    }
    Ok(out)
}

fn lzma(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let stream = liblzma::stream::Stream::new_lzma_decoder(MOST)?;
    read(liblzma::read::XzDecoder::new_stream(bytes, stream))
}

/// The legacy frame that `lz4 -l` writes (lz4's `lz4_Frame_format.md`, "Legacy frame"): blocks of at most 8 MiB, each
/// after its compressed length in 4 bytes. It has no end mark; a bzImage's payload is followed by the length of the
/// decompressed kernel, which is no length of a block that fits.
fn lz4_legacy(mut bytes: &[u8]) -> io::Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut out = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > rest.len() {
            break;
        }
        let (block, rest) = rest.split_at(length);
        let block = lz4_flex::block::decompress(block, BLOCK)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
        let last = block.len() < BLOCK;
        out.extend_from_slice(&block);
        if out.len() as u64 > MOST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more than 1 GiB when decompressed"));
        }
        if last {
            break;
        }
        bytes = rest;
    }
    if out.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn sample() -> Vec<u8> {
        (0..300_000_u32).flat_map(|i| (i / 7).to_le_bytes()).collect()
    }

    #[test]
    fn every_format_gives_back_what_went_in() {
        let sample = sample();
        let path = Path::new("sample");

        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&sample).unwrap();
        assert_eq!(decompress(path, xz.finish().unwrap()).unwrap(), sample);

        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&sample).unwrap();
        let mut gz = gz.finish().unwrap();
        gz.extend_from_slice(&1_200_000_u32.to_le_bytes());
        assert_eq!(decompress(path, gz).unwrap(), sample);

        let mut zst = zstd::encode_all(&sample[..], 1).unwrap();
        zst.extend_from_slice(&1_200_000_u32.to_le_bytes());
        assert_eq!(decompress(path, zst).unwrap(), sample);

        let block = lz4_flex::block::compress(&sample);
        let mut lz4 = vec![0x02, 0x21, 0x4c, 0x18];
        lz4.extend_from_slice(&(block.len() as u32).to_le_bytes());
        lz4.extend_from_slice(&block);
        lz4.extend_from_slice(&1_200_000_u32.to_le_bytes());
        assert_eq!(decompress(path, lz4).unwrap(), sample);

        assert_eq!(decompress(path, sample.clone()).unwrap(), sample);
    }

    #[test]
    fn a_truncated_stream_is_an_error() {
        let zst = zstd::encode_all(&sample()[..], 1).unwrap();
        let cut = zst[..zst.len() / 2].to_vec();
        assert!(matches!(decompress(Path::new("x"), cut), Err(Error::Compressed { format: "zstd", .. })));
    }
}
