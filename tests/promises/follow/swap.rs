//! P4: a rebuild takes the live model's place whole, whoever is killed, writes or reads meanwhile.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use annals::{
    Annals, App, Append, Config, ExpectedVersion, Follow, Metadata, NewEvent, Position, StreamId,
    testing::{TestDatabase, database},
};
use futures::future::join_all;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Row};

use super::{assert_accounted, by, processes, rebuild, shop};
use crate::{
    app::place,
    embedded::{Folder, app::App as Process},
    kit::{LONG, eventually, open_with},
    shop::{Order, Spend},
};

/// For a machine that does much else.
fn patient(url: &str) -> Config {
    Config { connect_deadline: LONG, ..crate::kit::config(url) }
}

async fn patient_shop(url: &str) -> App {
    shop(url, |config| *config = patient(url)).await
}

async fn run(pool: &PgPool, statement: impl Into<String>) {
    pool.execute(sqlx::raw_sql(AssertSqlSafe(statement.into()))).await.unwrap();
}

async fn ask<T>(pool: &PgPool, query: impl Into<String>) -> T
where
    T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    sqlx::query_scalar(AssertSqlSafe(query.into())).fetch_one(pool).await.unwrap()
}

/// The generation of `follower` that is live.
async fn live(pool: &PgPool, follower: &str) -> i64 {
    let query = "select generation from annals.generations where purpose = 'live' and follower =";
    ask(pool, format!("{query} '{follower}'")).await
}

async fn swapped(pool: &PgPool, follower: &str, old: i64) {
    eventually("it is swapped", || async { live(pool, follower).await != old }).await;
}

/// How often `action` was done to `follower`.
async fn count(pool: &PgPool, follower: &str, action: &str) -> i64 {
    ask(pool, format!("select count(*) from annals.actions where follower = '{follower}' and action = '{action}'"))
        .await
}

/// Lets what was retired be old: nobody waits for the 5 s after which it is dropped.
async fn age(pool: &PgPool) {
    run(pool, "update annals.generations set state_at = state_at - interval '1 hour' where purpose = 'retired'").await;
}

/// Nothing is there but what is live.
async fn cleared(pool: &PgPool, follower: &str) {
    let left = format!(
        "select (select count(*) from annals.generations where purpose <> 'live') + \
           (select count(*) from pg_namespace where nspname like 'annals\\_{follower}\\_%')"
    );
    eventually("nothing is left of the old model", || async {
        age(pool).await;
        ask::<i64>(pool, &*left).await == 0
    })
    .await;
}

/// Spoils rows of the live models: only one that was built anew has them right.
async fn spoil(pool: &PgPool) {
    let spoil = "update annals_spend.documents set document = '{\"cents\":0,\"orders\":0}' where key <> 'ada'; \
                 update annals_journal.entries set version = version + 1000 where position < 100";
    run(pool, spoil).await;
}

/// Each of the `events` is in the model, once.
async fn assert_whole(app: &App, follower: &str, events: i64) {
    let verified = app.verify(follower).await.unwrap();
    assert!(verified.equal, "{verified:?}");
    assert_eq!(assert_accounted(app, follower).await, (events, events, 0, 0), "{follower}");
}

/// Stops whoever comes to a place in the database, without the code's knowing: what the test puts there waits for a lock
/// that the test holds.
struct Trap {
    holder: PgConnection,
    pid: i32,
    pool: PgPool,
    /// What it holds them in.
    statement: &'static str,
}

/// Where, under a condition in which `$f` stands for the follower.
#[derive(Debug, Clone, Copy)]
enum At {
    /// Before a command.
    Command(&'static str, &'static str),
    /// Before a row changes.
    Row(&'static str, &'static str),
    /// In the commit of such a change: it happens, and who made it never hears of it.
    Commit(&'static str, &'static str),
    /// Before the swap holds the live checkpoints.
    Live,
    /// Where the shadow has its indexes and is behind the live model.
    Behind,
}

/// A batch of the shadow that is not its first.
const LATER: (&str, &str) =
    ("update on annals.checkpoints", "new.position > old.position and old.position > 0 and $shadow");
/// Its indexes are noted; it becomes the live one.
const NOTED: &str = "update on annals.generations";
const INDEXED: &str = "new.follower = '$f' and new.indexed and not old.indexed";
const LIVE: &str = "new.follower = '$f' and new.purpose = 'live' and old.purpose = 'rebuild'";
/// A statement that drops the old schema.
const OLD: &str = "exists (select from annals.generations g where g.follower = '$f' and g.purpose = 'retired' \
                     and current_query() like '%' || g.schema_name || '%')";

/// What holds the process in the middle of a rebuild of which follower, and at which pace it is built.
#[rustfmt::skip]
const STEPS: [(&str, &str, At, Option<f64>); 14] = [
    ("taking the request", "spend", At::Row("update on annals.followers",
        "new.rebuild_requested_at is null and old.rebuild_requested_at is not null"), None),
    ("creating the schema", "journal", At::Command("CREATE SCHEMA", "true"), None),
    ("beginning, in the commit", "journal", At::Commit("insert on annals.generations", "new.purpose = 'rebuild'"), None),
    ("building, the second batch of a view", "spend", At::Row(LATER.0, LATER.1), Some(600.0)),
    ("building, the second batch of a projector", "journal", At::Row(LATER.0, LATER.1), Some(600.0)),
    ("making the indexes", "journal", At::Command("CREATE INDEX", "current_query() like '%entries%'"), None),
    ("noting the indexes, in the commit", "spend", At::Commit(NOTED, INDEXED), None),
    ("catching up with its indexes", "spend", At::Behind, Some(600.0)),
    ("holding the live model", "journal", At::Live, None),
    ("giving the shadow its name", "journal", At::Command("ALTER SCHEMA", "to_regnamespace('annals_$f') is null"), None),
    ("entering the swap", "spend", At::Row(NOTED, LIVE), None),
    ("swapping, in the commit", "journal", At::Commit(NOTED, LIVE), None),
    ("dropping the old tables", "spend", At::Command("DROP TABLE", OLD), None),
    ("dropping, in the commit", "spend", At::Commit("delete on annals.generations", "old.purpose = 'retired'"), None),
];

/// Who waits, in such a statement, for what a session of the test holds: the names of their applications.
async fn held(pool: &PgPool, pid: i32, statement: &str) -> Vec<String> {
    let query = "select application_name from pg_stat_activity \
                 where datname = current_database() and wait_event_type = 'Lock' and query like $2 \
                   and $1 = any (pg_blocking_pids(pid))";
    sqlx::query_scalar(query).bind(pid).bind(statement).fetch_all(pool).await.unwrap()
}

impl Trap {
    async fn set(pool: &PgPool, follower: &str, at: At) -> Self {
        let mut holder = PgConnection::connect_with(&pool.connect_options()).await.unwrap();
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut holder).await.unwrap();
        let mut trap = Self { holder, pid, pool: pool.clone(), statement: "%" };
        let (kind, condition, trigger) = match at {
            At::Command(tag, condition) => {
                let trigger = format!("event trigger trap_{pid} on ddl_command_start when tag in ('{tag}')");
                ("event_trigger", condition, trigger)
            }
            At::Row(..) | At::Behind => {
                let (event, condition) = if let At::Row(event, condition) = at { (event, condition) } else { LATER };
                ("trigger", condition, format!("trigger trap_{pid} before {event} for each row"))
            }
            At::Commit(event, condition) => {
                let when = "initially deferred for each row";
                ("trigger", condition, format!("constraint trigger trap_{pid} after {event} {when}"))
            }
            // A select fires no trigger: what it locks is locked. Nothing is written between it and the new names.
            At::Live => {
                trap.holder.execute("begin").await.unwrap();
                let lock = "select from annals.checkpoints where follower = $1 for update";
                sqlx::query(lock).bind(follower.to_owned()).execute(&mut trap.holder).await.unwrap();
                trap.statement = "%order by c.partition%for update of c%";
                return trap;
            }
        };
        sqlx::query("select pg_advisory_lock($1)").bind(i64::from(pid)).execute(&mut trap.holder).await.unwrap();
        let shadow = "exists (select from annals.generations g where g.follower = '$f' and g.purpose = 'rebuild' \
                        and g.generation = new.generation)";
        let condition = condition.replace("$shadow", shadow).replace("$f", follower);
        let end = if kind == "trigger" { "return coalesce(new, old);" } else { "" };
        let function = format!(
            "create function trap_{pid}() returns {kind} language plpgsql as $body$ begin \
               if {condition} then perform pg_advisory_xact_lock_shared({pid}); end if; {end} \
             end $body$"
        );
        run(pool, format!("{function}; create {trigger} execute function trap_{pid}()")).await;
        trap
    }

    /// Waits until somebody is held, and tells who.
    async fn springs(&self) -> String {
        let found = OnceLock::new();
        let is_held = || async {
            held(&self.pool, self.pid, self.statement).await.pop().is_some_and(|name| found.set(name).is_ok())
        };
        eventually("somebody is held", is_held).await;
        found.into_inner().unwrap()
    }

    /// Lets everybody go on, from now on.
    async fn release(self) {
        self.holder.close().await.unwrap();
    }
}

/// A database, two processes that run its followers, and an app that only writes.
struct Shop {
    database: TestDatabase,
    folder: Arc<Folder>,
    processes: BTreeMap<String, Process>,
    writer: App,
    pool: PgPool,
    events: i64,
}

impl Shop {
    async fn open() -> Self {
        let database = database().await;
        let store = open_with(patient(database.url())).await;
        let writer = store.app().aggregate::<Order>().start().await.unwrap();
        let (pool, folder) = (writer.store().pool().clone(), Arc::new(Folder::new()));
        rebuild::fill(&writer, 2).await;
        let mut shop = Self { database, folder, processes: BTreeMap::new(), writer, pool, events: 1_000 };
        shop.start("one").await;
        shop.start("two").await;
        let last = shop.place(1).await;
        shop.checked(&["spend", "journal"], last, false).await;
        shop
    }

    async fn start(&mut self, name: &str) {
        let (url, name, folder) = (self.database.url().to_owned(), name.to_owned(), self.folder.clone());
        let start = move || (name.clone(), processes::start_process(&url, &name, &folder));
        let (name, process) = tokio::task::spawn_blocking(start).await.unwrap();
        self.processes.insert(name, process);
    }

    async fn place(&mut self, orders: i64) -> Position {
        let mut last = Position::START;
        for _ in 0..orders {
            let id = format!("more-{}", self.events);
            last = self.writer.execute::<Order>(id, place("ada", 1)).await.unwrap().position;
            self.events += 1;
        }
        last
    }

    /// An app that looks at the models, and is gone before the next step: it could come to the place where another is killed.
    async fn checked(&self, followers: &[&str], last: Position, whole: bool) {
        let checker = processes::start(self.database.url(), "checker", Follow::Nothing).await;
        for follower in followers {
            checker.wait_for(follower, last, LONG).await.unwrap();
            if whole {
                assert_whole(&checker, follower, self.events).await;
            }
        }
        checker.shutdown().await;
    }

    /// Has `follower` built anew, kills the process that comes to `at`, and looks what the other one makes of it.
    async fn kill_at(&mut self, follower: &str, at: At, pace: Option<f64>) {
        let (pool, control) = (self.pool.clone(), self.writer.store().followers());
        let (old, swaps) = (live(&pool, follower).await, count(&pool, follower, "swap").await);
        spoil(&pool).await;

        let trap = Trap::set(&pool, follower, at).await;
        control.rebuild(follower, pace, &by("a test")).await.unwrap();
        if matches!(at, At::Command("DROP TABLE" | "DROP SCHEMA", _) | At::Commit("delete on annals.generations", _)) {
            swapped(&pool, follower, old).await;
            age(&pool).await;
        }
        let name = trap.springs().await;
        if let At::Behind = at {
            let waits = format!(
                "select g.indexed and s.position < l.position from annals.generations g \
                 join annals.lag s using (follower, generation) join annals.lag l on l.follower = g.follower \
                 where g.follower = '{follower}' and g.purpose = 'rebuild' and l.purpose = 'live'"
            );
            eventually("it has its indexes, and waits", || ask::<bool>(&pool, &*waits)).await;
        }
        self.processes.get_mut(&name).unwrap().kill();
        trap.release().await;
        self.place(10).await;
        swapped(&pool, follower, old).await;
        let last = self.place(1).await;

        self.checked(&[follower], last, true).await;
        assert_eq!(count(&pool, follower, "swap").await, swaps + 1);
        cleared(&pool, follower).await;
        self.start(&name).await;
    }
}

/// Each step of a rebuild in turn, in a few databases at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_process_that_is_killed_at_any_step_of_a_rebuild_and_its_swap_leaves_it_to_another_that_finishes_it() {
    const LANES: usize = 3;
    let lanes = (0..LANES).map(|lane| {
        tokio::spawn(async move {
            let mut shop = Shop::open().await;
            for (what, follower, at, pace) in STEPS.iter().skip(lane).step_by(LANES) {
                println!("killed in lane {lane} when {what}");
                shop.kill_at(follower, *at, *pace).await;
            }
        })
    });
    join_all(lanes).await.into_iter().for_each(Result::unwrap);
}

/// The shop in a process, with a few thousand orders, and rows of its models spoilt.
async fn spoilt(url: &str) -> (App, PgPool) {
    let app = patient_shop(url).await;
    rebuild::fill(&app, 4).await;
    let placed = app.execute::<Order>("last", place("ada", 7)).await.unwrap();
    app.wait_for_all(placed.position, LONG).await.unwrap();
    let pool = app.store().pool().clone();
    spoil(&pool).await;
    (app, pool)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_several_ask_for_at_once_is_begun_and_swapped_once() {
    let database = database().await;
    let (one, pool) = spoilt(database.url()).await;
    let two = patient_shop(database.url()).await;
    let old = live(&pool, "spend").await;

    // Both apps come to begin it before one of them does.
    let mut holder = PgConnection::connect(database.url()).await.unwrap();
    let lock = "select pg_advisory_lock(hashtextextended('annals read model annals_spend', 0)), pg_backend_pid()";
    let pid: i32 = sqlx::query(lock).fetch_one(&mut holder).await.unwrap().get(1);
    let asked = [&one, &one, &two, &two].map(|app| {
        let control = app.store().followers();
        async move { control.rebuild("spend", None, &by("at once")).await.unwrap() }
    });
    join_all(asked).await;
    eventually("both are there", || async { held(&pool, pid, "%").await.len() == 2 }).await;
    holder.close().await.unwrap();
    swapped(&pool, "spend", old).await;
    let nothing = "select not exists (select from annals.followers where rebuild_requested_at is not null) \
                   and not exists (select from annals.generations where purpose = 'rebuild')";
    eventually("there is nothing more to build", || ask::<bool>(&pool, nothing)).await;

    assert_eq!((count(&pool, "spend", "rebuild").await, count(&pool, "spend", "swap").await), (1, 1));
    assert_whole(&one, "spend", 2_001).await;

    // Asked for again while it is being built, it begins anew: what was asked for later may know better.
    let old = live(&pool, "spend").await;
    let control = two.store().followers();
    control.rebuild("spend", Some(10.0), &by("slowly")).await.unwrap();
    eventually("it has begun", || async { count(&pool, "spend", "rebuild").await == 2 }).await;
    control.rebuild("spend", None, &by("at once")).await.unwrap();
    swapped(&pool, "spend", old).await;
    assert_eq!((count(&pool, "spend", "rebuild").await, count(&pool, "spend", "swap").await), (3, 2));
    assert_whole(&two, "spend", 2_001).await;
    cleared(&pool, "spend").await;
}

/// An order in a transaction that is still open.
async fn append_open(store: &Annals, conn: &mut PgConnection, id: i64) -> Position {
    conn.execute("begin").await.unwrap();
    let events = vec![NewEvent::new("Placed", r#"{"customer":"open","cents":1}"#)];
    let append = Append {
        stream: StreamId::new(format!("order-open-{id}")).unwrap(),
        expected: ExpectedVersion::NoStream,
        events,
    };
    store.append_in(conn, vec![append], Metadata::default()).await.unwrap()[0].position
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_beside_sixteen_writers_does_not_wait_for_an_append_that_is_open_and_does_not_lose_it() {
    let database = database().await;
    let (app, pool) = spoilt(database.url()).await;
    let config = Config { transaction_deadline: LONG, ..patient(database.url()) };
    let store = open_with(config).await;
    let mut conn = PgConnection::connect(database.url()).await.unwrap();
    let (stopped, events) = (AtomicBool::new(false), AtomicI64::new(2_001));
    let open = append_open(&store, &mut conn, 1).await;

    let writing = join_all((0..16).map(|writer| {
        let (app, stopped, events) = (&app, &stopped, &events);
        async move {
            let mut nth = 0;
            while !stopped.load(Ordering::Relaxed) {
                app.execute::<Order>(format!("{writer}-{nth}"), place(&format!("w{writer}"), 1)).await.unwrap();
                events.fetch_add(1, Ordering::Relaxed);
                nth += 1;
                // So slowly that the shadow counts as near all the time, however far the open append holds it back.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }));
    let rebuilding = async {
        let control = app.store().followers();
        for follower in ["spend", "journal"] {
            let old = live(&pool, follower).await;
            control.rebuild(follower, None, &by("beside writers")).await.unwrap();
            swapped(&pool, follower, old).await;
        }
        let passed = format!("select bool_or(position >= {open}) from annals.lag where purpose = 'live'");
        assert!(!ask::<bool>(&pool, passed).await, "nobody goes past an append that is open");
        conn.execute("commit").await.unwrap();
        events.fetch_add(1, Ordering::Relaxed);
        app.wait_for_all(open, LONG).await.unwrap();

        // The other way: what was open before commits in the middle of the swap.
        let open = append_open(&store, &mut conn, 2).await;
        for (follower, commits) in [("spend", false), ("journal", true)] {
            let old = live(&pool, follower).await;
            let at = At::Command("ALTER SCHEMA", "to_regnamespace('annals_$f') is null");
            let trap = Trap::set(&pool, follower, at).await;
            control.rebuild(follower, None, &by("beside writers")).await.unwrap();
            trap.springs().await;
            if commits {
                conn.execute("commit").await.unwrap();
                events.fetch_add(1, Ordering::Relaxed);
            }
            trap.release().await;
            swapped(&pool, follower, old).await;
        }
        app.wait_for_all(open, LONG).await.unwrap();
        stopped.store(true, Ordering::Relaxed);
    };
    let (_, ()) = tokio::join!(writing, rebuilding);
    let last = app.execute::<Order>("end", place("ada", 1)).await.unwrap();
    app.wait_for_all(last.position, LONG).await.unwrap();

    let events = events.into_inner() + 1;
    for follower in ["spend", "journal"] {
        assert_whole(&app, follower, events).await;
    }
    assert_eq!(app.get::<Spend>("open").await.unwrap(), Some(Spend { cents: 2, orders: 2 }));
    let rows: (i64, i64) = sqlx::query_as(
        "select count(*), count(*) filter (where stream like 'order-open-%') from annals_journal.entries",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert_eq!(rows, (events, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_statement_reads_the_new_model_after_the_swap_or_is_refused() {
    let database = database().await;
    let (old, pool) = spoilt(database.url()).await;
    let mut conn = PgConnection::connect(database.url()).await.unwrap();
    let spent =
        "select coalesce(sum((document->>'cents')::bigint), 0)::bigint from annals_spend.documents where key <> $1";
    let all = "select * from annals_journal.entries where position = 1";
    conn.execute(sqlx::raw_sql(
        "prepare spent as select count(*) from annals_spend.documents where document->>'cents' = '0'",
    ))
    .await
    .unwrap();
    let zeros =
        async |conn: &mut PgConnection| -> i64 { sqlx::raw_sql("execute spent").fetch_one(conn).await.unwrap().get(0) };
    // Often enough for a plan that is made once.
    for _ in 0..10 {
        let cents: i64 = sqlx::query_scalar(spent).bind("ada").fetch_one(&mut conn).await.unwrap();
        assert_eq!((cents, zeros(&mut conn).await), (0, 50));
        assert_eq!(sqlx::query(all).fetch_one(&mut conn).await.unwrap().get::<i64, _>("version"), 1_001);
    }

    let generation = live(&pool, "spend").await;
    old.store().followers().rebuild("spend", None, &by("spoilt")).await.unwrap();
    swapped(&pool, "spend", generation).await;
    for _ in 0..2 {
        let cents: i64 = sqlx::query_scalar(spent).bind("ada").fetch_one(&mut conn).await.unwrap();
        assert_eq!((cents, zeros(&mut conn).await), (499_000, 0));
        cleared(&pool, "spend").await;
    }

    // The new journal has a column more than what was prepared, which the server says.
    let new = rebuild::newer(database.url()).await;
    eventually("journal is new", || async { rebuild::version(&new, "journal").await == 2 }).await;
    let refused = sqlx::query(all).fetch_one(&mut conn).await.unwrap_err().to_string();
    assert!(refused.contains("cached plan must not change result type"), "{refused}");
    let again = "select * from annals_journal.entries where position = 1 limit 1";
    let row = sqlx::query(again).fetch_one(&mut conn).await.unwrap();
    assert_eq!((row.get::<i64, _>("version"), row.get("event_type")), (1, "Placed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_the_old_model_reads_it_to_the_end_before_the_new_one_takes_its_place() {
    let database = database().await;
    let (app, pool) = spoilt(database.url()).await;
    let begin = async |level: &str| {
        let mut conn = PgConnection::connect(database.url()).await.unwrap();
        conn.execute(sqlx::raw_sql(AssertSqlSafe(format!("begin isolation level {level}")))).await.unwrap();
        conn
    };
    // In the middle of a query; at the beginning of a dump.
    let (mut query, mut dump) = (begin("read committed").await, begin("repeatable read").await);
    query.execute("declare long cursor for select document->>'cents' from annals_spend.documents").await.unwrap();
    let mut read = query.fetch_all("fetch 10 from long").await.unwrap();
    dump.execute("lock table annals_spend.documents, annals_spend._position in access share mode").await.unwrap();
    dump.execute("select from annals.store").await.unwrap();

    let old = live(&pool, "spend").await;
    app.store().followers().rebuild("spend", None, &by("spoilt")).await.unwrap();
    let ready = "select exists (select from annals.generations g join annals.checkpoints c using (follower, generation) \
                 where g.follower = 'spend' and g.purpose = 'rebuild' and g.indexed and c.position = \
                   (select max(position) from annals.events))";
    eventually("it has caught up", || ask::<bool>(&pool, ready)).await;
    read.extend(query.fetch_all("fetch all from long").await.unwrap());
    let cents: Vec<&str> = read.iter().map(|row| row.get(0)).collect();
    let zeros = cents.iter().filter(|cents| **cents == "0").count();
    assert_eq!((cents.len(), zeros), (51, 50), "all of the old one, and nothing of the new one");
    query.execute("commit").await.unwrap();
    // Another read of the live model goes on, and so do its events.
    let last = app.execute::<Order>("more", place("ada", 1)).await.unwrap().position;
    app.wait_for("spend", last, LONG).await.unwrap();
    assert!(app.get::<Spend>("ada").await.unwrap().is_some());
    let dumped = "select count(*) from annals_spend.documents where document->>'cents' = '0'";
    assert_eq!(dump.fetch_one(dumped).await.unwrap().get::<i64, _>(0), 50);
    assert_eq!(live(&pool, "spend").await, old);
    dump.execute("commit").await.unwrap();

    swapped(&pool, "spend", old).await;
    cleared(&pool, "spend").await;
    assert_eq!(query.fetch_one(dumped).await.unwrap().get::<i64, _>(0), 0);
}

/// Postgres looks names up as they are now, and rows as they were when the snapshot was taken: to a snapshot from before the
/// swap the new model is what it was then, half built or empty. Its position says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_from_before_the_swap_finds_rows_that_are_those_of_the_position_beside_them() {
    let database = database().await;
    let app = patient_shop(database.url()).await;
    rebuild::fill(&app, 4).await;
    let last = app.execute::<Order>("last", place("ada", 7)).await.unwrap().position;
    app.wait_for_all(last, LONG).await.unwrap();
    let (pool, old) = (app.store().pool().clone(), live(app.store().pool(), "spend").await);
    let begin = async || {
        let mut conn = PgConnection::connect(database.url()).await.unwrap();
        conn.execute("begin isolation level repeatable read").await.unwrap();
        conn.execute("select from annals.store").await.unwrap();
        conn
    };
    // As many orders as events, and no customer for two.
    let read = async |conn: &mut PgConnection| -> (i64, i64) {
        let both = "select coalesce(sum((document->>'orders')::bigint), 0)::bigint, \
                    coalesce((select position from annals_spend._position), 0) from annals_spend.documents";
        sqlx::query_as(both).persistent(false).fetch_one(conn).await.unwrap()
    };

    let mut before = begin().await;
    let trap = Trap::set(&pool, "spend", At::Behind).await;
    app.store().followers().rebuild("spend", Some(600.0), &by("anew")).await.unwrap();
    trap.springs().await;
    let mut halfway = begin().await;
    trap.release().await;
    swapped(&pool, "spend", old).await;

    let seen = [read(&mut before).await, read(&mut halfway).await];
    assert!(seen.iter().all(|(orders, position)| orders == position), "{seen:?}");
    // Whoever begins again has all of it.
    for mut conn in [before, halfway] {
        conn.execute("commit").await.unwrap();
        assert_eq!(read(&mut conn).await, (2_001, 2_001));
    }
}
