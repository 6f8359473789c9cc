//! The text of a file, unpacked if it is gzipped.

use std::{
    fs::File,
    io::{self, Cursor, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use flate2::read::MultiGzDecoder;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A text to read, and how far it has been read.
pub(crate) struct Source {
    /// What errors call it.
    pub(crate) name: String,
    pub(crate) text: Box<dyn Read + Send>,
    /// Bytes as they are stored, packed or not.
    pub(crate) total_bytes: u64,
    /// Of these, how many have been read.
    pub(crate) bytes_read: BytesRead,
}

/// How many bytes have been read, for whoever shows progress.
#[derive(Debug, Clone, Default)]
pub(crate) struct BytesRead(Arc<AtomicU64>);

impl BytesRead {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Source {
    /// Opens a file. Whether it is gzipped is told by its first bytes, not by its name.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let total_bytes = file.metadata()?.len();
        Self::new(path.display().to_string(), file, total_bytes)
    }

    /// A text in memory.
    ///
    /// # Errors
    /// None that memory can give.
    pub(crate) fn of(text: impl AsRef<[u8]> + Send + 'static) -> io::Result<Self> {
        let total_bytes = text.as_ref().len() as u64;
        Self::new("a text in memory".into(), Cursor::new(text), total_bytes)
    }

    fn new(name: String, stored: impl Read + Send + 'static, total_bytes: u64) -> io::Result<Self> {
        let bytes_read = BytesRead::default();
        let mut stored = Counted { stored, bytes_read: bytes_read.clone() };
        let mut magic = vec![];
        stored.by_ref().take(GZIP_MAGIC.len() as u64).read_to_end(&mut magic)?;
        let gzipped = magic == GZIP_MAGIC;
        let whole = Cursor::new(magic).chain(stored);
        let text: Box<dyn Read + Send> = if gzipped { Box::new(MultiGzDecoder::new(whole)) } else { Box::new(whole) };
        Ok(Self { name, text, total_bytes, bytes_read })
    }
}

/// Counts what is read.
struct Counted<R> {
    stored: R,
    bytes_read: BytesRead,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.stored.read(into)?;
        self.bytes_read.0.fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(bytes)
    }
}
