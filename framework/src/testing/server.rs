//! A server of its own for a test that kills, stops and hangs it.

use std::{
    env, fmt, fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use sqlx::PgPool;
use uuid::Uuid;

use super::{
    database::chain,
    watchdog::{Afterwards, Watchdog},
};
use crate::embedded::{self, Attempt, EmbeddedError, Options, Server, blocking, folders, process};

/// How long the processes of a killed server may take to be gone.
const LIMIT: Duration = Duration::from_secs(10);

/// A Postgres of a test's own, durable, with the faults that a server can have. Gone with this value, files and all.
///
/// It keeps its port, so a connection string stays good over every stop, crash and start.
///
/// # Example
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let mut server = annals::testing::server().await;
/// server.kill(); // as if the machine had lost power: nothing is flushed, no client is told
/// server.start().await; // recovers what was committed
/// # }
/// ```
pub struct TestServer {
    // Fields are dropped in this order: the server stops, then the watchdog deletes its files.
    server: Option<Server>,
    options: Options,
    url: String,
    pid: u32,
    #[expect(dead_code, reason = "its end is its use")]
    watchdog: Watchdog,
}

/// Makes and starts a server for one test. `DATABASE_URL` plays no part; it takes about a second.
///
/// # Panics
/// When none can be started; the message says what to do.
pub async fn server() -> TestServer {
    match blocking(TestServer::make).await {
        Ok(server) => server,
        Err(error) => panic!("no server for this test: {}", chain(&error)),
    }
}

impl TestServer {
    fn make() -> Result<Self, EmbeddedError> {
        let failed = |action: &str| {
            let action = action.to_owned();
            move |source: io::Error| EmbeddedError::Io { action, source }
        };
        let data_dir = env::temp_dir().join(format!("annals-server-{}", Uuid::now_v7().simple()));
        fs::create_dir(&data_dir).map_err(failed("make a folder in the system's temp folder"))?;
        // Durable in all but one: initdb need not wait for the disk, as these files never outlive the machine.
        let durable = ["fsync", "full_page_writes"].map(|name| (name.to_owned(), "on".to_owned()));
        let mut options =
            Options { data_dir, durable: false, settings: durable.into(), announce: |_| (), ..Options::default() };
        let (data, cluster) = folders(&options.data_dir, options.announce)?;
        let watchdog =
            Watchdog::watch(&data, &cluster, Afterwards::Remove).map_err(failed("run `sh` to stop the server"))?;
        let server = Server::start(&Attempt::new(options.clone()))?;
        options.port = Some(server.port());
        Ok(Self { url: server.url().into(), pid: server.pid(), server: Some(server), options, watchdog })
    }

    /// The connection string, with the password; always the same.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The server's process, or the last one's.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The folder of its cluster, log and locks.
    pub fn data_dir(&self) -> PathBuf {
        self.options.data_dir.clone()
    }

    /// A new pool of at most 10 connections.
    ///
    /// # Panics
    /// When the server takes no connection.
    pub async fn pool(&self) -> PgPool {
        let pool = sqlx::postgres::PgPoolOptions::new().max_connections(10).connect(&self.url).await;
        pool.unwrap_or_else(|error| panic!("cannot connect to the test's server: {error}"))
    }

    /// Ends every process of the server at once, as a power failure does, and waits until they are gone.
    ///
    /// # Panics
    /// When they are not gone in 10 s.
    pub fn kill(&mut self) {
        let all = self.pause();
        process::signal("KILL", &all);
        let gone = || all.iter().all(|pid| process::command_line(*pid).is_none());
        assert!(process::wait_until(Instant::now() + LIMIT, gone), "the killed server {} does not end", self.pid);
        self.server = None;
    }

    /// Stops the server in order: connections are ended, everything is flushed.
    ///
    /// # Panics
    /// When it does not stop.
    pub async fn stop(&mut self) {
        let Some(server) = self.server.take() else { return };
        if let Err(error) = server.stop().await {
            panic!("the test's server does not stop: {}", chain(&error));
        }
    }

    /// Starts the server again, on the same port; it recovers if it was killed. Nothing happens to one that runs.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(&mut self) {
        if self.server.is_some() {
            return;
        }
        match embedded::start(self.options.clone()).await {
            Ok(server) => {
                self.pid = server.pid();
                self.server = Some(server);
            }
            Err(error) => panic!("the test's server does not start: {}", chain(&error)),
        }
    }

    /// Freezes every process of the server: connections stay open, and nobody answers. Returns the processes.
    pub fn pause(&self) -> Vec<u32> {
        // First the one that makes the others, so that the list is complete.
        process::signal("STOP", &[self.pid]);
        let mut all = process::children(self.pid);
        process::signal("STOP", &all);
        all.push(self.pid);
        all
    }

    /// Lets a frozen server go on.
    pub fn resume(&self) {
        let mut all = process::children(self.pid);
        all.push(self.pid);
        process::signal("CONT", &all);
    }
}

/// Without the password.
impl fmt::Debug for TestServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestServer").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.resume();
    }
}
