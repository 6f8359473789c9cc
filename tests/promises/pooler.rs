//! A pooler in transaction mode: declared, everything works through it; undeclared, it is refused.
//!
//! With `ANNALS_POOLER=transaction` the store's and followers' other tests go through one, too.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
    time::{Duration, Instant},
};

use annals::{
    Annals, Append, BoxError, Config, ExpectedVersion, Metadata, NewEvent, Pooler, Projector, ReadStream, Recorded,
    StoreError, StreamId,
    testing::{database, server},
};
use futures::future::join_all;
use sqlx::{
    Connection, Executor, PgConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{
    app::place,
    embedded::Folder,
    kit::{LONG, eventually},
    shop::{Order, OrderEvent, Spend},
};

/// A PgBouncer in front of one server, in transaction mode. It ends with this value, or with the process.
pub(crate) struct Bouncer {
    child: Child,
    port: u16,
    folder: Folder,
}

/// The parts of a URL that lead to a server.
struct Server<'u> {
    user: &'u str,
    password: &'u str,
    place: &'u str,
    database: &'u str,
}

fn server_of(url: &str) -> Server<'_> {
    let (login, rest) = url.split_once("://").unwrap().1.split_once('@').unwrap();
    let (user, password) = login.split_once(':').unwrap();
    let (place, database) = rest.split_once('/').unwrap();
    Server { user, password, place, database }
}

/// Debian's `pgbouncer`. Without it these tests say so; in CI that is a failure.
fn binary() -> Option<PathBuf> {
    let found = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];
    let found = found.into_iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        let skipped = "SKIPPED: there is no pgbouncer on this machine; type: apt-get install pgbouncer";
        assert!(std::env::var_os("CI").is_none(), "{skipped}");
        // Around the capture of a test's output.
        let _ = writeln!(std::io::stderr(), "{skipped}");
    }
    found
}

impl Bouncer {
    /// Starts one with so many connections to each database of the server at `url`.
    pub(crate) fn start(url: &str, connections: usize) -> Option<Self> {
        let binary = binary()?;
        let folder = Folder::new();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = server_of(url);
        let (host, server_port) = server.place.split_once(':').unwrap();
        let users = folder.path().join("users.txt");
        fs::write(&users, format!("\"{}\" \"{}\"\n", server.user, server.password)).unwrap();
        let settings = format!(
            "[databases]\n* = host={host} port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\nmax_client_conn = 2000\n\
             default_pool_size = {connections}\nserver_login_retry = 1\n",
            users.display()
        );
        fs::write(folder.path().join("pgbouncer.ini"), settings).unwrap();
        let mut bouncer = Self { child: Self::spawn(&binary, &folder), port, folder };
        bouncer.wait();
        Some(bouncer)
    }

    fn spawn(binary: &PathBuf, folder: &Folder) -> Child {
        // It ends when nobody holds the other end of its input any more, whatever became of this process. Root it refuses to be.
        let script = "if [ \"$(id -u)\" = 0 ]; then set -- \"$@\" -u nobody; fi; \"$@\" & bouncer=$!; read -r _; \
                      kill -9 $bouncer";
        Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(binary)
            .arg("-q")
            .arg(folder.path().join("pgbouncer.ini"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap()
    }

    fn wait(&mut self) {
        let begun = Instant::now();
        while TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], self.port))).is_err() {
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < LONG, "pgbouncer does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it at once, and starts another at the same place.
    fn restart(&mut self) {
        self.end();
        self.child = Self::spawn(&binary().unwrap(), &self.folder);
        self.wait();
    }

    fn end(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }

    /// `url` through this pooler.
    pub(crate) fn url(&self, url: &str) -> String {
        let server = server_of(url);
        format!("postgres://{}:{}@127.0.0.1:{}/{}", server.user, server.password, self.port, server.database)
    }

    /// The same for sqlx alone, as the pooler takes it.
    fn options(&self, url: &str) -> PgConnectOptions {
        self.url(url).parse::<PgConnectOptions>().unwrap().extra_float_digits(None).statement_cache_capacity(0)
    }

    /// What a store says to go through it.
    pub(crate) fn config(&self, url: &str) -> Config {
        Config { pooler: Pooler::Transaction, direct_url: Some(url.into()), ..Config::new(self.url(url)) }
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the other tests connect with: through a pooler if the run is to.
pub(crate) fn config(url: &str) -> Config {
    static BOUNCERS: OnceLock<Mutex<HashMap<String, Bouncer>>> = OnceLock::new();
    if std::env::var("ANNALS_POOLER").is_ok_and(|mode| mode == "transaction") {
        let mut bouncers = BOUNCERS.get_or_init(Mutex::default).lock().unwrap();
        let started = || Bouncer::start(url, 20).expect("ANNALS_POOLER is set, and there is no pgbouncer");
        return bouncers.entry(server_of(url).place.into()).or_insert_with(started).config(url);
    }
    Config::new(url)
}

fn placed(cents: i64) -> NewEvent {
    NewEvent::new("Noted", cents.to_string())
}

fn refusal(refused: Result<Annals, StoreError>) -> String {
    match refused {
        Err(StoreError::Unfit(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// Sends statements as most code does: with names that the client counts from 1.
struct Naming;

impl Projector for Naming {
    const NAME: &'static str = "naming";
    const TABLES: &'static str = "create table seen (position bigint primary key, stream text not null)";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut PgConnection) -> Result<(), BoxError> {
        for recorded in events {
            sqlx::query("insert into seen values ($1, $2)")
                .bind(recorded.position.get())
                .bind(recorded.stream.as_str())
                .execute(&mut *conn)
                .await?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_transaction_mode_that_nobody_declared_is_refused_and_named() {
    let database = database().await;
    let Some(bouncer) = Bouncer::start(database.url(), 5) else { return };
    let pooled = bouncer.url(database.url());
    // Others use it, too: then the server connections change at every statement.
    let others = PgPoolOptions::new().max_connections(3).connect_with(bouncer.options(database.url())).await.unwrap();
    let busy = tokio::spawn(async move {
        loop {
            let _ = join_all((0..3).map(|_| others.execute(sqlx::raw_sql("select pg_sleep(0.001)")))).await;
        }
    });

    for pooler in [Pooler::None, Pooler::Session] {
        for _ in 0..5 {
            let refused = refusal(Annals::connect(Config { pooler, ..Config::new(&pooled) }).await);
            assert!(refused.contains("the URL leads through a pooler") && refused.contains("direct_url"), "{refused}");
        }
    }
    busy.abort();
    let refused = refusal(Annals::connect(Config::new(&pooled)).await);
    assert!(refused.contains("the URL leads through a pooler"), "{refused}");
    let circle = Config { direct_url: Some(pooled.clone()), ..bouncer.config(database.url()) };
    let refused = refusal(Annals::connect(circle).await);
    assert!(refused.contains("direct_url leads through a pooler"), "{refused}");
    let refused = refusal(Annals::connect(Config { direct_url: None, ..bouncer.config(database.url()) }).await);
    assert!(refused.contains("set direct_url"), "{refused}");
    // Nothing was made by any of them.
    let made: bool = sqlx::query_scalar("select exists (select from pg_namespace where nspname = 'annals')")
        .fetch_one(&database.pool().await)
        .await
        .unwrap();
    assert!(!made);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_url_to_another_database_than_the_poolers_is_refused() {
    let (one, other) = (database().await, database().await);
    let Some(bouncer) = Bouncer::start(one.url(), 5) else { return };
    let config = Config { direct_url: Some(other.url().into()), ..bouncer.config(one.url()) };
    let refused = refusal(Annals::connect(config).await);
    assert!(refused.contains("different databases"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_declared_pooler_with_two_connections_nothing_is_lost_or_mixed_up() {
    let database = database().await;
    let Some(bouncer) = Bouncer::start(database.url(), 2) else { return };
    let config = || Config { append_lanes: 4, ..bouncer.config(database.url()) };
    let mut apps = vec![];
    for _ in 0..2 {
        let store = Annals::connect(config()).await.unwrap();
        apps.push(store.app().aggregate::<Order>().view::<Spend>().projector(Naming).start().await.unwrap());
    }
    // Another client of the pooler leaves its names behind.
    let mut other = PgConnection::connect_with(&bouncer.options(database.url())).await.unwrap();
    for nth in 0..5 {
        let mut tx = other.begin().await.unwrap();
        let text = format!("select {nth}");
        let _ = sqlx::query(sqlx::AssertSqlSafe(text)).execute(&mut *tx).await;
        let _ = tx.commit().await;
    }

    let placing = (0..400_u64).map(|nth| {
        let app = apps[nth as usize % 2].clone();
        async move { app.execute::<Order>(nth, place(&format!("c{}", nth % 7), nth as i64)).await.unwrap().position }
    });
    let last = join_all(placing).await.into_iter().max().unwrap();
    for app in &apps {
        app.wait_for_all(last, LONG).await.unwrap();
        for nth in (0..400_u64).step_by(37) {
            let stream = StreamId::new(format!("order-{nth}")).unwrap();
            let page = app.store().read_stream_page(&stream, ReadStream::default(), 10).await.unwrap();
            assert!(page.events.iter().all(|event| event.stream == stream) && page.events.len() == 1, "{page:?}");
        }
    }
    let spent: i64 = apps[0].list::<Spend>(None, 100).await.unwrap().iter().map(|(_, spend)| spend.cents).sum();
    assert_eq!(spent, (0..400).sum::<i64>());
    for name in ["spend", "naming"] {
        let verified = apps[1].verify(name).await.unwrap();
        assert!(verified.equal, "{verified:?}");
    }
    // Behind the pooler, no settings of one client are left for the next, and no transaction is open.
    let mut conn = PgConnection::connect_with(&bouncer.options(database.url())).await.unwrap();
    for _ in 0..10 {
        let left: (bool, bool) = {
            use sqlx::Row;
            let asked = "select current_setting('statement_timeout') = '0', current_setting('enable_nestloop') = 'on'";
            let row = sqlx::raw_sql(asked).fetch_one(&mut conn).await.unwrap();
            (row.get(0), row.get(1))
        };
        assert_eq!(left, (true, true));
    }
    let pool = database.pool().await;
    eventually("no transaction stays open", async || {
        let open =
            "select count(*) = 0 from pg_stat_activity where datname = current_database() and state like 'idle in%'";
        sqlx::query_scalar(open).fetch_one(&pool).await.unwrap()
    })
    .await;
    for app in apps {
        app.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn append_in_works_in_a_transaction_of_the_callers_own_through_the_pooler() {
    let database = database().await;
    let Some(bouncer) = Bouncer::start(database.url(), 3) else { return };
    let pool = PgPoolOptions::new().max_connections(3).connect_with(bouncer.options(database.url())).await.unwrap();
    let store = Annals::with_pool(pool, bouncer.config(database.url())).await.unwrap();
    let stream = StreamId::new("order-1").unwrap();
    let append = |cents| Append { stream: stream.clone(), expected: ExpectedVersion::Any, events: vec![placed(cents)] };

    for (cents, keep) in [(1, true), (2, false), (3, true)] {
        let mut tx = store.pool().begin().await.unwrap();
        store.append_in(&mut tx, vec![append(cents)], Metadata::default()).await.unwrap();
        if keep {
            tx.commit().await.unwrap();
        } else {
            tx.rollback().await.unwrap();
        }
    }
    let page = store.read_stream_page(&stream, ReadStream::default(), 10).await.unwrap();
    assert_eq!(page.events.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_dies_under_load_loses_nothing_that_was_acknowledged() {
    let server = server().await;
    let Some(mut bouncer) = Bouncer::start(server.url(), 4) else { return };
    let store = Annals::connect(bouncer.config(server.url())).await.unwrap();
    let app = store.app().aggregate::<Order>().view::<Spend>().projector(Naming).start().await.unwrap();

    let writing = tokio::spawn({
        let app = app.clone();
        async move {
            let (mut told, mut sent) = (vec![], 0_u64);
            for _ in 0..60 {
                let all = (sent..sent + 16).map(|nth| {
                    let app = &app;
                    async move { app.execute::<Order>(nth, place("ada", 1)).await.map(|done| (nth, done.position)) }
                });
                told.extend(join_all(all).await.into_iter().filter_map(Result::ok));
                sent += 16;
            }
            told
        }
    });
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        bouncer.restart();
    }
    let told = writing.await.unwrap();

    assert!(told.len() > 100, "{}", told.len());
    let last = told.iter().map(|(_, position)| *position).max().unwrap();
    app.wait_for_all(last, LONG).await.unwrap();
    for (nth, position) in &told {
        let stream = StreamId::new(format!("order-{nth}")).unwrap();
        let events = store.read_stream_page(&stream, ReadStream::default(), 10).await.unwrap().events;
        assert_eq!(events.iter().map(|event| event.position).collect::<Vec<_>>(), [*position], "order {nth}");
    }
    for name in ["spend", "naming"] {
        let verified = app.verify(name).await.unwrap();
        assert!(verified.equal, "{verified:?}");
    }
    app.shutdown().await;
}
