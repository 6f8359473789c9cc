//! P6: `replay_check` finds the first event that this build cannot read or apply, and writes nothing.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use annals::{
    Aggregate, Annals, BoxError, Builder, Change, Config, Context, DeadLetters, Event, ExpectedVersion, FailurePolicy,
    Id, NewEvent, Payload, Projector, Recorded, ReplayFailure, Replayed, StreamId, Upcast, View, testing::database,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::AssertSqlSafe;

use super::{by, parked, shop};
use crate::{
    app::place,
    kit::{Account, LONG, eventually, open, open_with},
    shop::{Journal, Order, OrderError, OrderEvent, Spend},
};

/// The amount that is too much for whatever a test breaks.
const BAD: i64 = 13;

async fn append(store: &Annals, stream: &str, events: Vec<NewEvent>) {
    store.append(&StreamId::new(stream).unwrap(), ExpectedVersion::Any, events).await.unwrap();
}

fn placed(customer: &str, cents: i64) -> NewEvent {
    NewEvent::new("Placed", format!(r#"{{"customer":"{customer}","cents":{cents}}}"#))
}

/// 2,500 events, and the bad one among 200 more: at position 2,601, version 101 of `order-x`.
async fn fill(store: &Annals) {
    for nth in 0..25 {
        let events = (0..100).map(|order| placed(&format!("c{order}"), 100)).collect();
        append(store, &format!("order-{nth}"), events).await;
    }
    let events = (0..200).map(|nth| placed("ada", if nth == 100 { BAD } else { 1 })).collect();
    append(store, "order-x", events).await;
}

/// A store as a process opens it that changes nothing.
async fn closed_hand(url: &str) -> Annals {
    open_with(Config { migrate: false, ..crate::kit::config(url) }).await
}

async fn check(builder: Builder) -> Replayed {
    tokio::time::timeout(LONG, builder.replay_check(|_| ())).await.expect("it ends").unwrap()
}

fn failed(replayed: Replayed) -> ReplayFailure {
    replayed.failure.unwrap_or_else(|| panic!("an event fails"))
}

/// Everything that is in the store but what beats by itself, and all schemas.
async fn content(store: &Annals) -> Vec<String> {
    let tables = "select format('select %L || '' '' || count(*) || md5(coalesce(string_agg(t::text, '','' order by t::text), '''')) from %I.%I t', \
                  relname, nspname, relname) from pg_class c join pg_namespace n on n.oid = relnamespace \
                  where nspname like 'annals%' and relkind = 'r' and relname <> 'processes' order by nspname, relname";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(store.pool()).await.unwrap();
    let mut content = schemas(store).await;
    for table in tables {
        content.push(sqlx::query_scalar(AssertSqlSafe(table)).fetch_one(store.pool()).await.unwrap());
    }
    content
}

async fn schemas(store: &Annals) -> Vec<String> {
    let schemas = "select nspname::text from pg_namespace where nspname !~ '^pg_' order by 1";
    sqlx::query_scalar(schemas).fetch_all(store.pool()).await.unwrap()
}

/// The view `spend` of a later build, which panics at a bad order.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Spend2<const VERSION: u32>(Spend);

impl<const VERSION: u32> View for Spend2<VERSION> {
    const NAME: &'static str = "spend";
    const VERSION: u32 = VERSION;
    type Event = OrderEvent;

    fn keys(recorded: &Recorded<OrderEvent>) -> Vec<Id> {
        Spend::keys(recorded)
    }

    fn apply(&mut self, key: &Id, recorded: &Recorded<OrderEvent>) -> Change {
        assert!(!matches!(recorded.event, OrderEvent::Placed { cents: BAD, .. }), "an unlucky number");
        self.0.apply(key, recorded)
    }
}

/// The projector `journal` of a later build, which breaks at a bad order: how, its type says.
struct Journal2<const HOW: u8>;

const REFUSES: u8 = 0;
const SLEEPS: u8 = 1;
const NEVER_WAITS: u8 = 2;
const COMMITS: u8 = 3;
const LATE: u8 = 4;

impl<const HOW: u8> Projector for Journal2<HOW> {
    const NAME: &'static str = "journal";
    const VERSION: u32 = 2;
    const TABLES: &'static str = "create table lines (position bigint primary key, cents bigint not null check (cents <> 13)); \
        create table late (cents bigint unique deferrable initially deferred); insert into late values (13)";
    const FAILURES: FailurePolicy = match HOW {
        SLEEPS | NEVER_WAITS => FailurePolicy { deadline: Duration::from_millis(700), ..FailurePolicy::PARK },
        _ => FailurePolicy::PARK,
    };
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        sqlx::query("create temporary table seen (position bigint) on commit drop").execute(&mut *conn).await?;
        let cents = |event: &Recorded<OrderEvent>| match event.event {
            OrderEvent::Placed { cents, .. } => cents,
            _ => 0,
        };
        let (mut positions, mut amounts) = (vec![], vec![]);
        for event in events {
            positions.push(event.position.get());
            amounts.push(if HOW == REFUSES { cents(event) } else { 0 });
        }
        let insert = sqlx::query("insert into lines select * from unnest($1::bigint[], $2::bigint[])");
        insert.bind(positions).bind(amounts).execute(&mut *conn).await?;
        if !events.iter().any(|event| cents(event) == BAD) {
            return Ok(());
        }
        let statement = match HOW {
            NEVER_WAITS => loop {
                std::thread::sleep(Duration::from_millis(1));
            },
            SLEEPS => "select pg_sleep(100)",
            COMMITS => "commit",
            LATE => "insert into late values (13)",
            _ => "",
        };
        sqlx::raw_sql(statement).execute(conn).await?;
        Ok(())
    }
}

/// The order of a later build, which panics at a bad one.
#[derive(Default, Serialize, Deserialize)]
struct Fragile;

impl Aggregate for Fragile {
    const TYPE: &'static str = "order";
    type Command = ();
    type Event = OrderEvent;
    type Error = OrderError;

    fn handle(&self, (): &(), _: &Context) -> Result<Vec<OrderEvent>, OrderError> {
        Ok(vec![])
    }

    fn apply(&mut self, event: &OrderEvent) {
        assert!(!matches!(event, OrderEvent::Placed { cents: BAD, .. }), "an unlucky number");
    }
}

/// Its events in a later schema version, whose upcast refuses a bad one.
#[derive(Serialize, Deserialize, JsonSchema)]
enum OrderEvent2 {
    Placed { customer: String, euros: i64 },
    Confirmed,
    Cancelled { customer: String, cents: i64, reason: String },
}

impl Event for OrderEvent2 {
    fn schema_version(event_type: &str) -> u16 {
        if event_type == "Placed" { 2 } else { 1 }
    }

    fn upcasts() -> Vec<Upcast> {
        fn to_euros(mut json: Value, _: &Recorded<Payload>) -> Result<Value, BoxError> {
            match json["cents"].as_i64() {
                None | Some(BAD) => Err("no such amount".into()),
                Some(cents) => {
                    json["euros"] = (cents / 100).into();
                    Ok(json)
                }
            }
        }
        vec![Upcast { event_type: "Placed", from: 1, upcast: to_euros }]
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Order2;

impl Aggregate for Order2 {
    const TYPE: &'static str = "order";
    type Command = ();
    type Event = OrderEvent2;
    type Error = OrderError;

    fn handle(&self, (): &(), _: &Context) -> Result<Vec<OrderEvent2>, OrderError> {
        Ok(vec![])
    }

    fn apply(&mut self, _: &OrderEvent2) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_this_build_can_read_passes_and_nothing_is_written() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;
    fill(app.store()).await;
    append(app.store(), "note-1", vec![NewEvent::new("Noted", "{}"), NewEvent::new("Noted", "{}")]).await;
    let last = app.execute::<Order>("y", place("ada", 7)).await.unwrap();
    app.wait_for_all(last.position, LONG).await.unwrap();
    app.shutdown().await;
    let store = closed_hand(database.url()).await;
    let before = content(&store).await;

    let mut told = vec![];
    let builder = store.app().aggregate::<Order>().aggregate::<Account>().view::<Spend>().projector(Journal);
    let replayed = builder.replay_check(|progress| told.push(progress.clone())).await.unwrap();

    assert_eq!(replayed.failure, None);
    assert_eq!((replayed.position, replayed.events, replayed.streams), (last.position, 2_703, 28));
    assert_eq!(
        (replayed.aggregates, replayed.followers),
        (vec!["order".into(), "account".into()], vec!["spend".into(), "journal".into()])
    );
    assert_eq!(replayed.unread.into_iter().collect::<Vec<_>>(), [("note".to_owned(), 2)]);
    assert_eq!((&*told[0].by, told[0].up_to), ("aggregate order", last.position));
    let all = told.last().unwrap();
    assert_eq!((&*all.by, all.events), ("views and projectors", 2_703));
    assert_eq!(content(&store).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_build_cannot_read_or_apply_is_named_with_the_event_and_whose_code_it_is() {
    let database = database().await;
    let store = open(database.url()).await;
    fill(&store).await;
    let before = content(&store).await;

    let orders = || store.app().aggregate::<Order>();
    for (builder, by, words) in [
        (
            store.app().aggregate::<Fragile>().view::<Spend2<2>>(),
            "aggregate order",
            "the handler panicked: an unlucky number",
        ),
        (store.app().aggregate::<Order2>(), "aggregate order", "the upcast from version 1 failed: no such amount"),
        (orders().view::<Spend2<2>>().projector(Journal), "view spend", "the handler panicked: an unlucky number"),
        (orders().view::<Spend>().projector(Journal2::<REFUSES>), "projector journal", "lines_cents_check"),
        (orders().projector(Journal2::<SLEEPS>), "projector journal", "statement timeout"),
        (orders().projector(Journal2::<LATE>), "projector journal", "late_cents_key"),
    ] {
        let replayed = check(builder).await;

        assert_eq!((replayed.position.get(), replayed.events, replayed.streams), (2_601, 2_601, 26), "{by} {words}");
        let failure = failed(replayed);
        assert_eq!((&*failure.by, failure.position.get()), (by, 2_601), "{failure:?}");
        assert_eq!((&*failure.stream, failure.version.get()), ("order-x", 101));
        assert_eq!((&*failure.event_type, failure.schema_version), ("Placed", 1));
        assert!(failure.error.contains(words), "{failure:?}");
    }
    assert_eq!(content(&store).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_ends_its_transaction_or_never_ends_itself_leaves_nothing_behind() {
    let database = database().await;
    let store = open(database.url()).await;
    fill(&store).await;
    let before = content(&store).await;

    let commits = failed(check(store.app().aggregate::<Order>().projector(Journal2::<COMMITS>)).await);
    let hangs = failed(check(store.app().aggregate::<Order>().projector(Journal2::<NEVER_WAITS>)).await);

    for (failure, words) in [(&commits, "its transaction cannot be committed"), (&hangs, "did not end within 700ms")] {
        // The transaction is gone with it, so it is not searched further than to the page.
        assert_eq!((&*failure.by, failure.position.get()), ("projector journal", 2_001), "{failure:?}");
        assert!(failure.error.contains(words), "{failure:?}");
        assert!(failure.error.contains("it is one of the 700 events from this one on"), "{failure:?}");
    }
    // The thread that hangs holds its connection, until the server ends the transaction or the process ends.
    assert_eq!(content(&store).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_event_counts_whoever_fails_at_it_and_an_unknown_one_fails_for_all() {
    let database = database().await;
    let store = open(database.url()).await;
    // By stream, the second comes first.
    append(&store, "order-2", vec![placed("ada", 1), NewEvent::new("Shipped", "{}")]).await;
    append(&store, "order-1", vec![placed("ada", 1), NewEvent::new("Placed", r#"{"customer":7}"#)]).await;

    let first = failed(check(store.app().aggregate::<Order>().view::<Spend>()).await);
    assert_eq!((&*first.by, &*first.stream, first.position.get()), ("aggregate order", "order-2", 2));
    assert!(first.error.contains("the event type is not known; known are Placed, Confirmed, Cancelled"), "{first:?}");

    let broken = store.app().aggregate::<Order>().projector(Unruly);
    let broken = broken.replay_check(|_| ()).await.unwrap_err().to_string();
    assert!(broken.contains("tables or indexes of unruly cannot be created"), "{broken}");
}

/// Whose index is wrong.
struct Unruly;

impl Projector for Unruly {
    const NAME: &'static str = "unruly";
    const TABLES: &'static str = "create table lines (cents bigint)";
    const INDEXES: &'static str = "create index on lines (euros)";
    type Event = OrderEvent;

    async fn apply(&self, _: &[Recorded<OrderEvent>], _: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_log_passes_and_a_store_that_is_not_there_is_refused_and_not_made() {
    let database = database().await;
    let config = Config { migrate: false, ..crate::kit::config(database.url()) };
    let refused = Annals::connect(config.clone()).await.unwrap_err().to_string();
    assert!(refused.contains("store annals lacks 0001_store, 0002_followers, 0003_sagas"), "{refused}");
    let store = open(database.url()).await;
    assert!(!schemas(&store).await.contains(&"annals_spend".to_owned()));

    let replayed = check(closed_hand(database.url()).await.app().aggregate::<Order>().view::<Spend>()).await;

    assert_eq!((replayed.position.get(), replayed.events, replayed.failure), (0, 0, None));
    sqlx::query("delete from annals.migrations where number = 2").execute(store.pool()).await.unwrap();
    let refused = Annals::connect(config).await.unwrap_err().to_string();
    assert!(refused.contains("lacks 0002_followers, and this process is told to migrate nothing"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_events_are_left_out_and_a_newer_version_is_checked_without_a_rebuild() {
    let database = database().await;
    let live = open(database.url()).await.app().aggregate::<Order>().view::<Spend2<1>>();
    let app = live.projector(Journal2::<REFUSES>).start().await.unwrap();
    append(app.store(), "order-1", vec![placed("ada", 1), placed("ada", BAD)]).await;
    let last = app.execute::<Order>("x", place("bob", 5)).await.unwrap();
    app.wait_for_all(last.position, LONG).await.unwrap();
    let control = app.store().followers();
    let store = closed_hand(database.url()).await;
    let newer = || store.app().aggregate::<Order>().view::<Spend2<2>>().projector(Journal2::<REFUSES>);

    assert_eq!(failed(check(newer()).await).by, "view spend");
    control.discard("spend", &DeadLetters::All, &by("no luck")).await.unwrap();
    assert_eq!(failed(check(newer()).await).by, "projector journal");
    control.discard("journal", &DeadLetters::All, &by("no luck")).await.unwrap();

    assert_eq!(check(newer()).await.failure, None);
    let lag = control.lag().await.unwrap();
    let found: Vec<_> = lag.iter().map(|lag| (&*lag.follower, lag.version, &*lag.purpose)).collect();
    assert_eq!(found, [("journal", 2, "live"), ("spend", 1, "live")]);
    assert!(control.actions(None, 10).await.unwrap().iter().all(|action| action.action == "discard"));
    assert_eq!((parked(&app, "spend").await, parked(&app, "journal").await), (0, 0));
}

/// Whether [`Waiting`] may go on.
static MAY_GO_ON: AtomicBool = AtomicBool::new(false);
static IS_WAITING: AtomicBool = AtomicBool::new(false);

/// The projector `journal` of a later build, which takes its time.
struct Waiting;

impl Projector for Waiting {
    const NAME: &'static str = "journal";
    const VERSION: u32 = 2;
    const TABLES: &'static str = "create table lines (position bigint primary key)";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        for event in events {
            sqlx::query("insert into lines values ($1)").bind(event.position.get()).execute(&mut *conn).await?;
        }
        IS_WAITING.store(true, Ordering::Relaxed);
        while !MAY_GO_ON.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_and_followers_of_others_go_on_during_a_check_and_one_that_is_given_up_leaves_nothing() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;
    let last = app.execute::<Order>("first", place("ada", 7)).await.unwrap();
    app.wait_for_all(last.position, LONG).await.unwrap();
    let before = schemas(app.store()).await;
    let store = closed_hand(database.url()).await;
    let waiting = || async { IS_WAITING.load(Ordering::Relaxed) };
    // A new read model, too, of a name that others may set up meanwhile.
    let check = || store.app().aggregate::<Order>().view::<Spend2<2>>().projector(Waiting).replay_check(|_| ());

    let given_up = tokio::spawn(check());
    eventually("it is under way", waiting).await;
    given_up.abort();
    let _ = given_up.await;
    MAY_GO_ON.store(true, Ordering::Relaxed);
    let idle = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'";
    let idle = || async { sqlx::query_scalar::<_, i64>(idle).fetch_one(app.store().pool()).await.unwrap() == 0 };
    eventually("its transaction is gone", idle).await;
    assert_eq!(schemas(app.store()).await, before);

    MAY_GO_ON.store(false, Ordering::Relaxed);
    IS_WAITING.store(false, Ordering::Relaxed);
    let work = async {
        eventually("it is under way", waiting).await;
        for nth in 0..30 {
            let placed = app.execute::<Order>(nth, place("bob", 1)).await.unwrap();
            app.wait_for_all(placed.position, LONG).await.unwrap();
        }
        let control = app.store().followers();
        control.pause("journal", &by("a look")).await.unwrap();
        control.resume("journal", &by("a look")).await.unwrap();
        let other = shop(database.url(), |_| ()).await;
        other.shutdown().await;
        control.forget("spend", &by("begin anew")).await.unwrap();
        let other = shop(database.url(), |_| ()).await;
        let placed = other.execute::<Order>("later", place("bob", 1)).await.unwrap();
        other.wait_for_all(placed.position, LONG).await.unwrap();
        other.shutdown().await;
        MAY_GO_ON.store(true, Ordering::Relaxed);
    };
    let (replayed, ()) = tokio::join!(check(), work);

    let replayed = replayed.unwrap();
    assert_eq!((replayed.position, replayed.events, replayed.failure), (last.position, 1, None));
    assert_eq!(app.get::<Spend>("bob").await.unwrap(), Some(Spend { cents: 31, orders: 31 }));
}
