//! P4: a read model is set up once, and another one of its name is never taken for it.

use annals::{
    BoxError, Change, DeadLetters, FollowerState, Id, Projector, Recorded, View, WaitError, testing::database,
};
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use sqlx::Executor;

use super::shop;
use crate::{
    app::place,
    kit::{LONG, eventually, open, start_error},
    shop::{Order, OrderEvent, Spend},
};

/// A view that nobody registers.
#[derive(Default, Serialize, Deserialize)]
struct Forgotten;

impl View for Forgotten {
    const NAME: &'static str = "forgotten";
    type Event = OrderEvent;

    fn keys(_: &Recorded<OrderEvent>) -> Vec<Id> {
        vec![]
    }

    fn apply(&mut self, _: &Id, _: &Recorded<OrderEvent>) -> Change {
        Change::Keep
    }
}

struct SpendTable;

impl Projector for SpendTable {
    const NAME: &'static str = "spend";
    const TABLES: &'static str = "create table spend (cents bigint)";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        for _ in events {
            sqlx::query("insert into spend values (1)").execute(&mut *conn).await?;
        }
        Ok(())
    }
}

/// The same under another name.
struct Renamed;

impl Projector for Renamed {
    const NAME: &'static str = "spent";
    const TABLES: &'static str = SpendTable::TABLES;
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        SpendTable.apply(events, conn).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_kind_under_the_same_name_is_refused_with_what_to_do() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;
    let store = open(database.url()).await;

    let (_, kind) = start_error(store.app().aggregate::<Order>().projector(SpendTable)).await;

    assert!(kind.contains("spend is a view in this store, and a projector in this build"), "{kind}");
    app.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_somebody_elses_is_left_alone() {
    let database = database().await;
    let store = open(database.url()).await;
    store.pool().execute("create schema annals_spend").await.unwrap();

    let (_, text) = start_error(store.app().aggregate::<Order>().view::<Spend>()).await;

    assert!(text.contains("schema annals_spend exists, but spend has no checkpoint"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_forgotten_is_built_again() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;
    let placed = app.execute::<Order>(1, place("ada", 10)).await.unwrap();
    app.wait_for_all(placed.position, LONG).await.unwrap();
    app.shutdown().await;

    open(database.url()).await.followers().forget("spend", &super::by("begin anew")).await.unwrap();
    let app = shop(database.url(), |_| ()).await;
    app.wait_for_all(placed.position, LONG).await.unwrap();

    assert_eq!(app.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 10, orders: 1 }));
    let old = "select count(*) from pg_namespace where nspname like 'annals\\_spend\\_%'";
    let schemas = || async { sqlx::query_scalar::<_, i64>(old).fetch_one(app.store().pool()).await.unwrap() };
    eventually("the old schema is dropped", || async { schemas().await == 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_runs_on_while_a_read_model_is_built_again_writes_nothing_old_into_it() {
    let database = database().await;
    let old = shop(database.url(), |_| ()).await;
    let placed = old.execute::<Order>(1, place("ada", 10)).await.unwrap();
    old.wait_for_all(placed.position, LONG).await.unwrap();

    old.store().followers().forget("spend", &super::by("begin anew")).await.unwrap();
    let new = shop(database.url(), |_| ()).await;
    new.wait_for_all(placed.position, LONG).await.unwrap();
    // What only the new one knows: the old one has another document in memory, and stands at the same position.
    let mend = "update annals_spend.documents set document = '{\"cents\":1000,\"orders\":1}'";
    new.store().pool().execute(mend).await.unwrap();
    new.shutdown().await;
    let placed = old.execute::<Order>(2, place("ada", 5)).await.unwrap();
    old.wait_for_all(placed.position, LONG).await.unwrap();

    // Whichever of the two ran it at the time: one that had stored the document itself does not load it again.
    let found = old.get::<Spend>("ada").await.unwrap();
    assert!(matches!(found, Some(Spend { cents: 1005 | 15, orders: 2 })), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_model_that_was_renamed_by_mistake_is_refused_and_can_be_renamed_in_the_store() {
    let database = database().await;
    let store = open(database.url()).await;
    let app = store.app().aggregate::<Order>().projector(SpendTable).start().await.unwrap();
    let placed = app.execute::<Order>(1, place("ada", 10)).await.unwrap();
    app.wait_for_all(placed.position, LONG).await.unwrap();
    app.shutdown().await;

    let store = open(database.url()).await;
    let (_, text) = start_error(store.app().aggregate::<Order>().projector(Renamed)).await;
    store.followers().rename("spend", "spent", &super::by("a better word")).await.unwrap();
    let app = store.app().aggregate::<Order>().projector(Renamed).start().await.unwrap();
    app.wait_for_all(placed.position, LONG).await.unwrap();

    assert!(text.contains("spent is new in this store, and spend, which this app does not register"), "{text}");
    let rows: i64 =
        sqlx::query_scalar("select count(*) from annals_spent.spend").fetch_one(store.pool()).await.unwrap();
    assert_eq!(rows, 1, "nothing was applied again");
    let taken = store.followers().rename("spend", "again", &super::by("twice")).await.unwrap_err().to_string();
    assert!(taken.contains("no follower \"spend\""), "{taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_start_together_set_up_one_read_model() {
    let database = database().await;

    let apps = join_all((0..6).map(|_| shop(database.url(), |_| ()))).await;

    let placed = apps[0].execute::<Order>(1, place("ada", 10)).await.unwrap();
    for app in &apps {
        app.wait_for_all(placed.position, LONG).await.unwrap();
        assert_eq!(app.get::<Spend>("ada").await.unwrap(), Some(Spend { cents: 10, orders: 1 }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_model_that_is_not_there_is_named() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;

    let unknown = app.wait_for("spent", annals::Position::START, LONG).await;
    let unregistered = app.get::<Forgotten>("ada").await.map(|_| ()).unwrap_err().to_string();

    assert!(matches!(&unknown, Err(WaitError::Unknown { name }) if name == "spent"), "{unknown:?}");
    assert!(unregistered.contains("view \"forgotten\" is not registered: add .view"), "{unregistered}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_been_waited_for_runs() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;

    app.wait_for_all(annals::Position::START, LONG).await.unwrap();
    let position = app.execute::<Order>("1", place("ada", 5)).await.unwrap().position;
    app.wait_for_all(position, LONG).await.unwrap();

    assert!(app.followers().iter().all(|status| status.state == FollowerState::Running), "{:?}", app.followers());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_the_app() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;
    let placed = app.execute::<Order>(1, place("ada", 10)).await.unwrap();
    app.wait_for_all(placed.position, LONG).await.unwrap();

    let beyond = annals::Position::new(placed.position.get() + 5);
    let (waited, ()) = tokio::join!(app.wait_for("spend", beyond, LONG), app.shutdown());

    let Err(WaitError::Behind { at, behind: 5, waited, .. }) = waited else { panic!("{waited:?}") };
    assert!(at == placed.position && waited < LONG, "{at} {waited:?}");
    let (one, all) = (app.wait_for("spend", beyond, LONG).await, app.wait_for_all(beyond, LONG).await);
    assert!(matches!((&one, &all), (Err(WaitError::Stopped), Err(WaitError::Stopped))), "{one:?} {all:?}");
}

/// A view of a name that no schema can be made of.
#[derive(Default, Serialize, Deserialize)]
struct Named<const NTH: usize>;

const LONG_NAME: &str = "a_name_that_with_the_store_before_it_takes_51_bytes";
const NAMES: [&str; 9] =
    ["", "o'brien", "say \"x\"", "x\ny", "x🦀", "x; drop schema annals; --", "Spend", "2nd", LONG_NAME];

impl<const NTH: usize> View for Named<NTH> {
    const NAME: &'static str = NAMES[NTH];
    type Event = OrderEvent;

    fn keys(_: &Recorded<OrderEvent>) -> Vec<Id> {
        vec![]
    }

    fn apply(&mut self, _: &Id, _: &Recorded<OrderEvent>) -> Change {
        Change::Keep
    }
}

async fn refused<const NTH: usize>(store: &annals::Annals) {
    let (error, text) = start_error(store.app().aggregate::<Order>().view::<Named<NTH>>()).await;
    assert!(matches!(error, annals::StartError::Invalid(_)), "{error:?}");
    assert!(text.contains(&format!("read model name {:?} is refused: it takes a-z, 0-9 and _", NAMES[NTH])), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_no_schemas_is_refused_at_the_start_and_wherever_it_is_given() {
    let database = database().await;
    let app = shop(database.url(), |_| ()).await;
    let (store, by) = (app.store(), super::by("an odd name"));

    refused::<0>(store).await;
    refused::<1>(store).await;
    refused::<2>(store).await;
    refused::<3>(store).await;
    refused::<4>(store).await;
    refused::<5>(store).await;
    refused::<6>(store).await;
    refused::<7>(store).await;
    refused::<8>(store).await;
    let control = store.followers();
    for name in NAMES {
        let renamed = control.rename("spend", name, &by).await.unwrap_err().to_string();
        let forgotten = control.forget(name, &by).await.unwrap_err().to_string();
        for text in [renamed, forgotten] {
            assert!(text.contains(&format!("read model name {name:?} is refused")), "{text}");
        }
        let unknown = [
            control.pause(name, &by).await.unwrap_err(),
            control.rebuild(name, None, &by).await.unwrap_err(),
            control.retry(name, &DeadLetters::All, &by).await.unwrap_err(),
            control.discard(name, &DeadLetters::All, &by).await.unwrap_err(),
        ];
        for error in unknown {
            assert!(error.to_string().contains(&format!("there is no follower {name:?}")), "{error}");
        }
        let text = app.verify(name).await.unwrap_err().to_string();
        assert!(text.contains(&format!("no view or projector {name:?}")), "{text}");
    }
    let placed = app.execute::<Order>(1, place("ada", 10)).await.unwrap();
    app.wait_for_all(placed.position, LONG).await.unwrap();
}
