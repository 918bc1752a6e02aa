//! Layers as they lie there, and as the tar that is in them.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use sha2::{Digest as _, Sha256};

use super::{
    super::{
        cache::{Cache, Kept},
        error::{Result, SourceError},
        progress::{Phase, Watch},
    },
    entries::Region,
};
use crate::{digest::Digest, import::Format};

const CHUNK: usize = 256 << 10;

/// A layer as it is stored.
#[derive(Debug)]
pub(crate) struct Blob {
    pub(crate) region: Region,
    /// What it should be, where that is still to be checked.
    pub(crate) digest: Option<Digest>,
    /// The downloaded file that it is.
    pub(crate) kept: Option<Kept>,
}

/// The tar in a layer: the layer itself if it is not compressed, else a file without a name in the cache. Both digests are
/// checked before anything looks into it.
pub(super) fn plain(
    image: &str,
    blob: &Blob,
    diff_id: Digest,
    cache: &Cache,
    watch: &mut Watch<'_>,
) -> Result<Region> {
    let region = &blob.region;
    let (plain, digests) = decompressed(image, region, cache, watch)?;
    if let Some(expected) = blob.digest.filter(|&expected| expected != digests.stored) {
        let what = format!("a layer of {image} ({})", expected.short());
        return Err(SourceError::WrongDigest { what, expected, found: digests.stored, removed: false });
    }
    if digests.plain != diff_id {
        let what = format!("what a layer of {image} unpacks to");
        return Err(SourceError::WrongDigest {
            what,
            expected: diff_id,
            found: digests.plain,
            removed: false,
        });
    }
    Ok(plain)
}

/// The SHA-256 of something as it is stored, and of what is in it.
pub(super) struct Digests {
    pub(super) stored: Digest,
    plain: Digest,
}

/// What is in a file that may be compressed.
pub(super) fn decompressed(
    image: &str,
    region: &Region,
    cache: &Cache,
    watch: &mut Watch<'_>,
) -> Result<(Region, Digests)> {
    let mut first = Vec::new();
    let begun = region.reader().take(16).read_to_end(&mut first);
    begun.map_err(SourceError::file("read", &region.path))?;
    let format = Format::of(&first);
    let stored = Arc::new(Mutex::new((Sha256::new(), 0)));
    let counted = Counted { inner: region.reader(), counts: stored.clone() };
    let mut source = format
        .decoder(BufReader::with_capacity(CHUNK, counted))
        .map_err(SourceError::file("decompress", &region.path))?;
    let (plain, file) = match format {
        Format::Plain => (copy(image, region, &mut source, None, &stored, watch)?, None),
        _ => {
            let file = cache.unnamed()?;
            let to = Some((&file, cache));
            (copy(image, region, &mut source, to, &stored, watch)?, Some(file))
        }
    };
    drop(source);
    // What follows the compressed data belongs to the blob, and to its digest.
    let (mut hash, at) = stored.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut rest = region.reader();
    rest.skip(at);
    let mut buffer = vec![0; CHUNK];
    loop {
        match rest.read(&mut buffer).map_err(SourceError::file("read", &region.path))? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    let digests = Digests { stored: Digest::of(hash), plain };
    let plain = match file {
        None => region.clone(),
        Some(file) => Region::whole(file, &region.path).map_err(SourceError::file("read", &region.path))?,
    };
    Ok((plain, digests))
}

/// Copies what is in it, or only reads it; gives its digest.
fn copy(
    image: &str,
    region: &Region,
    source: &mut dyn Read,
    to: Option<(&File, &Cache)>,
    stored: &Mutex<(Sha256, u64)>,
    watch: &mut Watch<'_>,
) -> Result<Digest> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        let n = match source.read(&mut buffer) {
            Ok(0) => return Ok(Digest::of(hash)),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                return Err(SourceError::image(image, format!("a layer cannot be decompressed: {error}")));
            }
        };
        hash.update(&buffer[..n]);
        if let Some((mut file, cache)) = to {
            let written = file.write_all(&buffer[..n]);
            written.map_err(|error| cache.write_failed(image, Path::new("a layer"), error))?;
        }
        let done = stored.lock().unwrap_or_else(PoisonError::into_inner).1;
        watch.step(Phase::Unpacking, image, done, Some(region.length))?;
    }
}

/// Hashes and counts what is read of a blob.
struct Counted<R> {
    inner: R,
    counts: Arc<Mutex<(Sha256, u64)>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.0.update(&buffer[..n]);
        counts.1 += n as u64;
        Ok(n)
    }
}
