//! A bzImage: its setup header says where the compressed kernel lies (Documentation/arch/x86/boot.rst, `payload_offset`
//! and `payload_length`, protocol 2.08 and later).

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use super::Error;

/// Bytes of the file that hold the setup header's fields.
const HEADER_SIZE: usize = 0x268;
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const PREFERRED_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
const SECTOR: u64 = 512;

/// The first protocol version with a payload offset.
const VERSION_PAYLOAD: u16 = 0x208;
/// The first protocol version with `init_size`.
const VERSION_INIT_SIZE: u16 = 0x20a;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Whether the file says "HdrS" where a bzImage does.
pub(super) fn recognise(file: &File) -> Result<bool, Error> {
    let mut magic = [0; 4];
    match file.read_exact_at(&mut magic, MAGIC as u64) {
        Ok(()) => Ok(&magic == b"HdrS"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(Error::Read(error)),
    }
}

/// Unpacks the payload into memory of its own (a memfd, which is gone with the descriptor), for a machine whose first RAM
/// ends at `ram_end`.
pub(super) fn unpack(file: &File, ram_end: u64) -> Result<File, Error> {
    let payload = Payload::find(file)?;
    if let Some(needs) = payload.needs.filter(|needs| *needs > ram_end) {
        return Err(Error::Memory { needs, has: ram_end });
    }
    let memfd = nix::sys::memfd::memfd_create(c"vmlinux", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .map_err(|errno| Error::Read(errno.into()))?;
    let mut unpacked = File::from(memfd);
    payload.unpack(file, &mut unpacked, ram_end)?;
    Ok(unpacked)
}

/// Where the compressed kernel lies in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Payload {
    offset: u64,
    length: u64,
    /// First address that the unpacked kernel does not use, where the header says.
    needs: Option<u64>,
}

impl Payload {
    /// Reads and checks the setup header.
    pub(super) fn find(file: &File) -> Result<Self, Error> {
        let length = file.metadata().map_err(Error::Read)?.len();
        let mut header = [0; HEADER_SIZE];
        if length < HEADER_SIZE as u64 {
            return Err(Error::Truncated { what: "its setup header", needs: HEADER_SIZE as u64, length });
        }
        file.read_exact_at(&mut header, 0).map_err(Error::Read)?;
        let version = u16::from_le_bytes([header[VERSION], header[VERSION + 1]]);
        if version < VERSION_PAYLOAD {
            return Err(Error::Malformed(
                "it follows a boot protocol before 2.08 (Linux before 2.6.26), which does not say where the kernel is",
            ));
        }
        // 0 stands for 4, says boot.rst.
        let sectors = match header[SETUP_SECTORS] {
            0 => 4,
            n => u64::from(n),
        };
        let offset = (sectors + 1) * SECTOR + u64::from(u32_at(&header, PAYLOAD_OFFSET));
        let payload = u64::from(u32_at(&header, PAYLOAD_LENGTH));
        if payload == 0 {
            return Err(Error::Malformed("its setup header says that it has no payload"));
        }
        if offset + payload > length {
            return Err(Error::Truncated { what: "its payload", needs: offset + payload, length });
        }
        let needs = (version >= VERSION_INIT_SIZE).then(|| {
            let address = u64::from(u32_at(&header, PREFERRED_ADDRESS))
                | u64::from(u32_at(&header, PREFERRED_ADDRESS + 4)) << 32;
            address.saturating_add(u64::from(u32_at(&header, INIT_SIZE)))
        });
        Ok(Self { offset, length: payload, needs })
    }

    /// Unpacks into `out`, at most `limit` bytes, and says how many there were.
    pub(super) fn unpack(&self, file: &File, out: &mut File, limit: u64) -> Result<u64, Error> {
        let mut start = [0; 6];
        let known = self.length.min(start.len() as u64) as usize;
        file.read_exact_at(&mut start[..known], self.offset).map_err(Error::Read)?;
        let mut input = file.try_clone().map_err(Error::Read)?;
        input.seek(SeekFrom::Start(self.offset)).map_err(Error::Read)?;
        // A 4-byte size follows the compressed data (it is not part of the format, except gzip's own, which is), so all
        // decoders stop at the end of their first frame.
        let input = BufReader::with_capacity(1 << 16, input.take(self.length));
        match start {
            [0x1f, 0x8b, ..] => copy("gzip", flate2::bufread::GzDecoder::new(input), out, limit),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => copy("xz", xz(input)?, out, limit),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => copy("zstd", zstd(input)?, out, limit),
            [0x02, 0x21, 0x4c, 0x18, ..] => lz4(input, out, limit),
            [0x7f, b'E', b'L', b'F', ..] => copy("uncompressed", input, out, limit),
            [b'B', b'Z', b'h', ..] => Err(Error::Compression("bzip2")),
            [0x5d, 0, 0, ..] => Err(Error::Compression("lzma")),
            [0x89, b'L', b'Z', b'O', ..] => Err(Error::Compression("lzo")),
            _ => Err(Error::Compression("something unknown")),
        }
    }
}

fn zstd(input: impl io::BufRead) -> Result<impl Read, Error> {
    let fail = |source| Error::Unpack { format: "zstd", source };
    let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(fail)?.single_frame();
    // Linux packs with `zstd -22 --ultra`, whose window is 128 MiB; the decoder never takes more.
    decoder.window_log_max(27).map_err(fail)?;
    Ok(decoder)
}

fn xz(input: impl io::BufRead) -> Result<impl Read, Error> {
    // Linux packs with a dictionary of 32 MiB, since 6.13 of up to 128; the limit is on the decoder's memory in bytes.
    let stream = liblzma::stream::Stream::new_stream_decoder(136 << 20, 0)
        .map_err(|error| Error::Unpack { format: "xz", source: error.into() })?;
    Ok(liblzma::bufread::XzDecoder::new_stream(input, stream))
}

/// Copies until the input ends, or is longer than it may be.
fn copy(format: &'static str, input: impl Read, out: &mut File, limit: u64) -> Result<u64, Error> {
    let copied = io::copy(&mut input.take(limit + 1), out);
    match copied.map_err(|source| Error::Unpack { format, source })? {
        0 => Err(Error::Malformed("its payload is empty")),
        n if n > limit => Err(Error::UnpackedSize { limit }),
        n => Ok(n),
    }
}

/// lz4's legacy frame (lz4_Frame_format.md, "Legacy frame"): a magic number, then blocks of a 4-byte length and at most
/// 8 MiB unpacked each, up to the end. The last 4 bytes of the payload are the size that Linux's build appends.
fn lz4(mut input: impl Read, out: &mut File, limit: u64) -> Result<u64, Error> {
    const BLOCK: usize = 8 << 20;
    const BLOCK_COMPRESSED: usize = BLOCK + BLOCK / 255 + 16;
    let fail = |source| Error::Unpack { format: "lz4", source };
    let corrupt = |text: &'static str| fail(io::Error::new(io::ErrorKind::InvalidData, text));
    let mut word = [0; 4];
    input.read_exact(&mut word).map_err(fail)?;
    let mut packed = Vec::new();
    let mut block = vec![0; BLOCK];
    let mut total = 0_u64;
    loop {
        if let Err(error) = input.read_exact(&mut word) {
            return if error.kind() == io::ErrorKind::UnexpectedEof && total > 0 {
                Ok(total)
            } else {
                Err(fail(error))
            };
        }
        let size = u32::from_le_bytes(word) as usize;
        packed.clear();
        let read =
            input.by_ref().take(size.min(BLOCK_COMPRESSED) as u64).read_to_end(&mut packed).map_err(fail)?;
        if read == 0 && total > 0 {
            // The appended size, with nothing behind it.
            return Ok(total);
        }
        if size > BLOCK_COMPRESSED || read < size {
            return Err(corrupt("a block is larger than the format allows, or cut off"));
        }
        let unpacked = lz4_flex::block::decompress_into(&packed, &mut block)
            .map_err(|error| fail(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        total += unpacked as u64;
        if total > limit {
            return Err(Error::UnpackedSize { limit });
        }
        out.write_all(&block[..unpacked]).map_err(fail)?;
    }
}
