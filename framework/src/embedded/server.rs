//! A running server and this process's share in it.

use std::{
    fmt, fs, io,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use super::{
    Attempt, EmbeddedError, Options, binaries, blocking, cluster,
    connection::Connection,
    error::Tried,
    lock::{self, Lock},
    place::Place,
    postmaster,
    process::GivenUp,
};

/// This process's share in a running server. The last share to go stops the server.
///
/// [`stop`](Self::stop) says what became of it. Dropping does the same and keeps the outcome to itself; it blocks the
/// thread until the server has stopped, some tens of milliseconds.
#[derive(Debug)]
pub struct Server {
    connection: Connection,
    /// Of the last process: [`revive`](Self::revive) may start another.
    pid: AtomicU32,
    how: How,
    place: Place,
    options: Options,
    /// Held as long as this process uses the server.
    users: Option<Lock>,
}

/// How [`start`](super::start) came by a running server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The cluster is new.
    Created,
    /// The cluster was there; its server was started.
    Started,
    /// The server ran already: another process uses it, or one was killed and left it.
    Joined,
}

/// What became of the server when this process left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nobody else used it: it has stopped, with everything on disk.
    Stopped,
    /// Others still use it: it runs on.
    StillShared,
}

impl Server {
    /// The connection string, with the password.
    pub fn url(&self) -> &str {
        &self.connection.url
    }

    /// How this process came by the server.
    pub fn how(&self) -> How {
        self.how
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.connection.port
    }

    /// The server's version: `15.18`.
    pub fn version(&self) -> &str {
        &self.connection.version
    }

    /// The cluster's folder.
    pub fn cluster(&self) -> PathBuf {
        self.place.cluster()
    }

    /// Leaves the server; the last one out stops it, rolling back what is in flight.
    ///
    /// # Errors
    /// [`EmbeddedError::Timeout`] if another process starts or stops it for longer than a minute, or if it does not end.
    pub async fn stop(mut self) -> Result<Left, EmbeddedError> {
        blocking(move || self.leave(Duration::from_secs(60))).await
    }

    /// Starts the server again if its process is gone, as it was and on its port, so that pools find it again. Returns
    /// whether it was gone. It recovers what was committed.
    ///
    /// # Errors
    /// As [`start`](super::start).
    pub async fn revive(&self) -> Result<bool, EmbeddedError> {
        if postmaster::is_running(&self.place.cluster()) {
            return Ok(false);
        }
        let attempt = Attempt::new(Options { port: Some(self.port()), ..self.options.clone() });
        let (_given_up, place) = (attempt.given_up_on_drop(), self.place.clone());
        let (connection, pid, _) = blocking(move || {
            let _start = start_lock(&place, &attempt)?;
            // A cluster that is gone with its data must not be replaced by an empty one behind the app's back.
            let cluster = place.cluster();
            fs::metadata(cluster.join("PG_VERSION")).tried(format_args!("find the cluster {}", cluster.display()))?;
            join_or_launch(&place, &attempt)
        })
        .await?;
        self.pid.store(pid, Ordering::Relaxed);
        if connection.url != self.connection.url {
            let found = io::Error::other(format!("another app has started it on port {}", connection.port));
            return Err(found)
                .tried(format_args!("find the server again on port {}: start the app again", self.port()));
        }
        Ok(true)
    }

    pub(crate) fn start(attempt: &Attempt) -> Result<Self, EmbeddedError> {
        let place = Place::prepare(&attempt.data_dir, attempt.announce)?;
        let _start = start_lock(&place, attempt)?;
        let users = lock::shared(&place.data.join("users.lock"))?;
        let (connection, pid, how) = join_or_launch(&place, attempt)?;
        let (pid, options) = (pid.into(), Options::clone(attempt));
        Ok(Self { connection, pid, how, place, options, users: Some(users) })
    }

    fn leave(&mut self, limit: Duration) -> Result<Left, EmbeddedError> {
        let Some(users) = self.users.take() else { return Ok(Left::StillShared) };
        if !self.place.data.exists() {
            return postmaster::stop(&self.place.cluster()).map(|()| Left::Stopped);
        }
        let _start =
            lock::exclusive(&self.place.data.join("start.lock"), limit, self.options.announce, &GivenUp::default())?;
        if !users.try_alone() {
            return Ok(Left::StillShared);
        }
        postmaster::stop(&self.place.cluster())?;
        Ok(Left::Stopped)
    }
}

fn start_lock(place: &Place, attempt: &Attempt) -> Result<Lock, EmbeddedError> {
    lock::exclusive(&place.data.join("start.lock"), attempt.deadline, attempt.announce, &attempt.given_up)
}

/// Under `start.lock`, and with `users.lock` held, so that nobody stops the server in between.
fn join_or_launch(place: &Place, attempt: &Attempt) -> Result<(Connection, u32, How), EmbeddedError> {
    if let Some((port, pid)) = postmaster::running(place, attempt)? {
        let connection = Connection::read(place)?.at(port);
        if attempt.durable && !connection.durable {
            return Err(EmbeddedError::NotDurable { pid });
        }
        connection.write(place)?;
        return Ok((connection, pid, How::Joined));
    }

    let major = cluster::major(&place.cluster());
    let binaries = binaries::resolve(attempt, place, major)?;
    if major.is_none() {
        cluster::create(place, &binaries, attempt)?;
    }
    let (connection, pid) = cluster::launch(place, &binaries, attempt)?;
    Ok((connection, pid, if major.is_none() { How::Created } else { How::Started }))
}

/// The data folder (as an absolute path) and the cluster's folder, for those who watch over them.
#[cfg(feature = "testing")]
pub(crate) fn folders(data_dir: &std::path::Path, announce: fn(&str)) -> Result<(PathBuf, PathBuf), EmbeddedError> {
    let place = Place::prepare(data_dir, announce)?;
    let cluster = place.cluster();
    Ok((place.data, cluster))
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.leave(Duration::from_secs(5)) {
            tracing::warn!(%error, "a private PostgreSQL was not stopped");
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connection { version, binaries, port, .. } = &self.connection;
        let how = match self.how {
            How::Created => "made and started",
            How::Started => "started",
            How::Joined => "already running",
        };
        let data = self.place.data.display();
        write!(f, "PostgreSQL {version} ({binaries}), {how} for {data}, port {port}")
    }
}
