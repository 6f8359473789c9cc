//! The bytes of a file, unpacked if it is gzipped.

use std::{
    fs::File,
    io::{self, Chain, Cursor, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::read::MultiGzDecoder;

/// How many bytes of a file have been read, for whoever shows progress.
#[derive(Debug, Clone, Default)]
pub(crate) struct BytesRead(Arc<AtomicU64>);

impl BytesRead {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A file that counts what is read from it.
pub(crate) struct Counted {
    file: File,
    bytes_read: BytesRead,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.read(into)?;
        self.bytes_read.0.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}

/// Opened input: the file's bytes, with what was taken to look at put back in front.
type Opened = Chain<Cursor<Vec<u8>>, Counted>;

/// The text of a file, whichever way it is stored. Told apart by its first bytes, not by its name.
pub(crate) enum Source {
    Plain(Opened),
    Gzip(Box<MultiGzDecoder<Opened>>),
}

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

impl Source {
    /// Opens `path`; `bytes_read` then counts the bytes as they lie on the disk.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn open(path: &Path, bytes_read: BytesRead) -> io::Result<Self> {
        let mut counted = Counted { file: File::open(path)?, bytes_read };
        let mut magic = vec![];
        counted.by_ref().take(GZIP_MAGIC.len() as u64).read_to_end(&mut magic)?;
        let gzipped = magic == GZIP_MAGIC;
        let opened = Cursor::new(magic).chain(counted);
        Ok(if gzipped { Self::Gzip(Box::new(MultiGzDecoder::new(opened))) } else { Self::Plain(opened) })
    }
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(bytes) => bytes.read(into),
            Self::Gzip(bytes) => bytes.read(into),
        }
    }
}
