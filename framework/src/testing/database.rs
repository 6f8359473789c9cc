//! A database of its own for each test.

use std::{
    env,
    error::Error,
    fmt,
    path::{Path, PathBuf},
    process,
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection, Executor, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{runtime, time::timeout};
use uuid::Uuid;

use super::watchdog::{Afterwards, Watchdog};
use crate::{
    BoxError,
    embedded::{Attempt, EmbeddedError, How, Options, Server, blocking, folders, process as os},
};

/// How long a test waits for its database, and for its end.
const LIMIT: Duration = Duration::from_secs(60);

/// How long whoever drops a database waits until it is gone. Then it is dropped in the background.
const PATIENCE: Duration = Duration::from_secs(5);

/// A test's own database, dropped with this value, whoever is still connected.
///
/// The server is the one of `DATABASE_URL` if that is set; else one that all test processes of a run share. It is
/// started by the first that needs it and stopped by the last, with its cluster kept under cargo's target folder.
///
/// # Example
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), sqlx::Error> {
/// let database = annals::testing::database().await;
/// let pool = database.pool().await;
///
/// sqlx::query("create table notes (text text)").execute(&pool).await?;
/// # Ok(()) }
/// ```
pub struct TestDatabase {
    name: String,
    url: String,
    options: PgConnectOptions,
    /// A connection to the server's own database, to drop this one from.
    admin: PgConnectOptions,
}

/// Makes a database for one test.
///
/// # Panics
/// When there is no server and none can be started; the message says what to do.
pub async fn database() -> TestDatabase {
    create().await.unwrap_or_else(|error| panic!("no database for this test: {}", chain(&*error)))
}

impl TestDatabase {
    /// The connection string, with the password.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same as [`url`](Self::url), for sqlx.
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// A new pool of at most 10 connections.
    ///
    /// # Panics
    /// When Postgres refuses the connection.
    pub async fn pool(&self) -> PgPool {
        let pool = PgPoolOptions::new().max_connections(10).acquire_timeout(LIMIT).connect_with(self.options()).await;
        pool.unwrap_or_else(|error| panic!("cannot connect to the test's database {}: {error}", self.name))
    }
}

/// Without the password.
impl fmt::Debug for TestDatabase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestDatabase").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (admin, name) = (self.admin.clone(), self.name.clone());
        let (done, waiting) = mpsc::channel();
        // The test's own runtime cannot wait here: it may be the one that drops this.
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let dropped = runtime.map_err(BoxError::from).and_then(|runtime| runtime.block_on(drop_it(&admin, &name)));
            if let Err(error) = dropped {
                eprintln!("the test's database {name} is left: {}", chain(&*error));
            }
            let _ = done.send(());
        });
        // The server waits with it for every session that is just logging in, and such a session may be one that the
        // thread which waits here has to answer.
        let _ = waiting.recv_timeout(PATIENCE);
    }
}

async fn create() -> Result<TestDatabase, BoxError> {
    let (server, left_over) = blocking(shared_server).await?;
    let admin = PgConnectOptions::from_str(&server)?;
    let mut connection = timeout(LIMIT, PgConnection::connect_with(&admin)).await??;
    if left_over {
        drop_left_over(&mut connection).await?;
    }

    let random = Uuid::now_v7().simple().to_string();
    let name = format!("annals_test_{}_{}", process::id(), &random[random.len() - 12..]);
    timeout(LIMIT, connection.execute(sql(include_str!("sql/create_database.sql"), &name))).await??;
    connection.close().await?;
    let options = admin.clone().database(&name);
    Ok(TestDatabase { url: with_database(&server, &name), name, options, admin })
}

async fn drop_it(admin: &PgConnectOptions, name: &str) -> Result<(), BoxError> {
    let mut connection = timeout(LIMIT, PgConnection::connect_with(admin)).await??;
    timeout(LIMIT, connection.execute(sql(include_str!("sql/drop_database.sql"), name))).await??;
    Ok(connection.close().await?)
}

/// Drops the databases of test processes that were killed in an earlier run.
async fn drop_left_over(connection: &mut PgConnection) -> Result<(), BoxError> {
    let names: Vec<String> =
        sqlx::query_scalar(include_str!("sql/list_databases.sql")).fetch_all(&mut *connection).await?;
    for name in names {
        let pid = name.split('_').nth(2).and_then(|pid| pid.parse().ok());
        if pid.is_some_and(|pid| pid == process::id() || os::command_line(pid).is_none()) {
            connection.execute(sql(include_str!("sql/drop_database.sql"), &name)).await?;
        }
    }
    Ok(())
}

/// A statement about a database takes its name as a word, not as a parameter. The names come from here or from
/// `pg_database`, and only letters, digits and underscores pass.
fn sql(text: &str, name: &str) -> AssertSqlSafe<String> {
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    AssertSqlSafe(text.replace("{name}", &name))
}

/// The connection string with another database's name.
fn with_database(url: &str, name: &str) -> String {
    let (address, query) = url.split_once('?').map_or((url, None), |(address, query)| (address, Some(query)));
    let host = address.find("://").map_or(0, |scheme| scheme + 3);
    let end = address[host..].find('/').map_or(address.len(), |slash| host + slash);
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}/{name}{query}", &address[..end])
}

/// The error with its causes.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

/// This process's share in the run's server. Never dropped: the watchdog sees the process end.
static SHARED: Mutex<Option<(Server, Watchdog)>> = Mutex::new(None);

/// The server's connection string, and whether databases of an earlier run may be on it.
fn shared_server() -> Result<(String, bool), EmbeddedError> {
    if let Some(url) = env::var("DATABASE_URL").ok().filter(|url| !url.is_empty()) {
        return Ok((url, false));
    }
    let mut shared: MutexGuard<'_, _> = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((server, _)) = &*shared {
        return Ok((server.url().into(), false));
    }

    let options = Options {
        data_dir: target_folder().join("annals-testing"),
        durable: false,
        settings: vec![("max_connections".into(), "500".into())],
        ..Options::default()
    };
    let (data, folder) = folders(&options.data_dir, options.announce)?;
    let watchdog = Watchdog::watch(&data, &folder, Afterwards::Keep)
        .map_err(|source| EmbeddedError::Io { action: "run `sh` to stop the server after the tests".into(), source })?;
    let server = Server::start(&Attempt::new(options.clone()))?;
    let url = server.url().to_owned();
    let left_over = server.how() == How::Started;
    *shared = Some((server, watchdog));
    Ok((url, left_over))
}

/// Cargo's target folder, or else one in the system's temp folder for this user.
fn target_folder() -> PathBuf {
    let marked = |folder: &Path| folder.join("CACHEDIR.TAG").is_file();
    let above = |path: PathBuf, below: &str| path.ancestors().map(|folder| folder.join(below)).find(|it| marked(it));
    let named = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    // A documentation test runs from a temp folder, but in its package's own.
    named
        .or_else(|| above(env::current_exe().ok()?, ""))
        .or_else(|| above(env::var_os("CARGO_MANIFEST_DIR")?.into(), "target"))
        .unwrap_or_else(|| env::temp_dir().join(format!("annals-{}", env::var("USER").unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn only_the_databases_name_changes_in_a_connection_string() {
        for (given, expected) in [
            ("postgres://u:p@host:1/old", "postgres://u:p@host:1/new"),
            ("postgres://host", "postgres://host/new"),
            ("postgresql://host/?sslmode=require&x=/y", "postgresql://host/new?sslmode=require&x=/y"),
        ] {
            assert_eq!(with_database(given, "new"), expected);
        }
    }
}
