//! The file `pg.json` of a data folder: how a second process reaches the server.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::{EmbeddedError, account, error::Tried, place::Place};

pub(super) const FILE: &str = "pg.json";

/// What `pg.json` says; readable by its owner alone.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Connection {
    /// The whole connection string.
    pub(super) url: String,
    pub(super) port: u16,
    pub(super) password: String,
    /// The server's version and where its binaries are.
    pub(super) version: String,
    pub(super) binaries: String,
    /// Whether the server was last started with durable settings.
    pub(super) durable: bool,
}

impl Connection {
    /// From the data folder or, if that was deleted, from beside the cluster.
    pub(super) fn read(place: &Place) -> Result<Self, EmbeddedError> {
        let read = |folder: &Path| serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok();
        read(&place.data)
            .or_else(|| read(&place.home))
            .ok_or_else(|| EmbeddedError::NoPassword { cluster: place.cluster(), file: place.data.join(FILE) })
    }

    /// For a new cluster: a password of 192 random bits, no port yet.
    pub(super) fn with_new_password() -> Result<Self, EmbeddedError> {
        let mut bytes = [0u8; 24];
        let random = fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes));
        random.tried("read /dev/urandom for a password")?;
        let password = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let (url, version, binaries) = Default::default();
        Ok(Self { url, port: 0, password, version, binaries, durable: true })
    }

    pub(super) fn at(mut self, port: u16) -> Self {
        self.url = format!("postgres://postgres:{}@127.0.0.1:{port}/postgres", self.password);
        self.port = port;
        self
    }

    /// Puts the file in place as a whole, also beside a cluster that lies elsewhere.
    pub(super) fn write(&self, place: &Place) -> Result<(), EmbeddedError> {
        let text = serde_json::to_vec_pretty(self).unwrap_or_default();
        let put = |folder: &Path| {
            let new = folder.join("pg.json.new");
            write_private(&new, &text)?;
            fs::rename(&new, folder.join(FILE)).tried(format_args!("replace {FILE} in {}", folder.display()))
        };
        put(&place.data)?;
        if place.home == place.data { Ok(()) } else { put(&place.home) }
    }
}

/// Without the password.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, version, durable, .. } = self;
        write!(f, "PostgreSQL {version} on port {port}, durable: {durable}")
    }
}

/// Writes a file that only its owner may read.
pub(super) fn write_private(path: &Path, contents: &[u8]) -> Result<(), EmbeddedError> {
    let _ = fs::remove_file(path);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(contents)).tried(format_args!("write {}", path.display()))?;
    account::belongs_like_its_folder(path)
}
