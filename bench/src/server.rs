//! The server that everything is measured on.

use std::{fs, path::Path, str::FromStr};

use annals::{
    BoxError, Config,
    embedded::{self, Database, Options},
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, postgres::PgConnectOptions};

/// A server, and a connection to look after it.
pub(crate) struct Server {
    database: Database,
}

impl Server {
    /// That of `DATABASE_URL`, or a private one with the settings of a fresh installation.
    pub(crate) async fn open() -> Result<Self, BoxError> {
        let settings = vec![("shared_buffers".into(), "128MB".into())];
        let options = Options { data_dir: ".data/bench".into(), settings, ..Options::default() };
        Ok(Self { database: embedded::database(options).await? })
    }

    pub(crate) fn url(&self) -> &str {
        self.database.url()
    }

    pub(crate) fn origin(&self) -> &str {
        self.database.origin()
    }

    /// A connection beside everything that is measured.
    pub(crate) async fn connect(&self) -> Result<PgConnection, BoxError> {
        Ok(PgConnection::connect_with(&PgConnectOptions::from_str(self.url())?).await?)
    }

    /// Runs statements that have no result. `sql` holds nothing from outside.
    pub(crate) async fn run(&self, sql: String) -> Result<(), BoxError> {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.connect().await?).await?;
        Ok(())
    }

    pub(crate) async fn drop_store(&self, store: &str) -> Result<(), BoxError> {
        self.run(format!("drop schema if exists {store} cascade")).await
    }

    /// The same with the schemas of its read models.
    pub(crate) async fn drop_with_models(&self, store: &str) -> Result<(), BoxError> {
        let schemas =
            format!("select nspname from pg_namespace where nspname = '{store}' or starts_with(nspname, '{store}_')");
        self.run(format!(
            "do $$ declare schema name; begin for schema in {schemas} loop \
             execute format('drop schema %I cascade', schema); end loop; end $$"
        ))
        .await
    }

    /// Lets the server finish what the last measurement left to do, so that the next does not pay for it.
    pub(crate) async fn settle(&self) -> Result<(), BoxError> {
        self.run("checkpoint".into()).await
    }

    pub(crate) async fn close(self) -> Result<(), BoxError> {
        Ok(self.database.close().await?)
    }
}

/// The defaults, as every case runs with them.
pub(crate) fn config(url: &str) -> Config {
    Config { application_name: "annals bench".into(), ..Config::new(url) }
}

/// The most memory that a process has had, in MB; none where the system does not say.
pub(crate) fn peak(status: &Path) -> Option<u64> {
    let text = fs::read_to_string(status).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}

/// Lets the system count the most memory of this process from now on.
pub(crate) fn forget_peak() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// The most memory that this process has had since, likewise.
pub(crate) fn own_peak() -> Option<u64> {
    peak(Path::new("/proc/self/status"))
}
