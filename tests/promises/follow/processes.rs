//! P3, P4: processes that are killed or stopped in the middle of their work, and the server under them.

use std::{collections::BTreeSet, time::Instant};

use annals::{
    App, BoxError, Config, ExpectedVersion, Follow, NewEvent, Projector, Recorded, StreamId,
    testing::{database, server},
};

use super::{assert_accounted, by};
use crate::{
    app::place,
    embedded::{Folder, app::App as Process, signal},
    kit::{LONG, eventually, open_with},
    shop::{Journal, Order, OrderEvent, Spend},
};

/// Takes its time, so that whoever is stopped is stopped in the middle of a batch.
struct Slow;

impl Projector for Slow {
    const NAME: &'static str = "slow";
    const TABLES: &'static str = "create table seen (position bigint primary key)";
    type Event = OrderEvent;

    async fn apply(&self, events: &[Recorded<OrderEvent>], conn: &mut sqlx::PgConnection) -> Result<(), BoxError> {
        let positions: Vec<i64> = events.iter().map(|event| event.position.get()).collect();
        sqlx::query("insert into seen select * from unnest($1::bigint[])").bind(positions).execute(&mut *conn).await?;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        Ok(())
    }
}

/// The shop, as each process runs it.
pub(crate) async fn process(url: &str, name: &str) -> App {
    start(url, name, Follow::All).await
}

pub(super) async fn start(url: &str, name: &str, follow: Follow) -> App {
    let config = Config { application_name: name.into(), connect_deadline: LONG, ..crate::kit::config(url) };
    let store = open_with(config).await;
    let builder = store.app().aggregate::<Order>().view::<Spend>().projector(Journal).projector(Slow);
    builder.follow(follow).start().await.unwrap()
}

pub(super) fn start_process(url: &str, name: &str, folder: &Folder) -> Process {
    let mut process = Process::start("follow", folder, |command| {
        command.env("APP_URL", url).env("APP_NAME", name);
    });
    assert_eq!(process.line(), "follows");
    process
}

async fn owners(app: &App) -> BTreeSet<String> {
    let lag = app.store().followers().lag().await.unwrap();
    lag.into_iter().map(|lag| lag.owner.map_or_else(|| "nobody".into(), |(name, _)| name)).collect()
}

async fn owned_by(app: &App, names: &[&str]) {
    let names: BTreeSet<String> = names.iter().map(ToString::to_string).collect();
    eventually("they are owned so", || async { owners(app).await == names }).await;
}

/// Places `count` orders.
async fn trade(app: &App, round: usize, count: usize) {
    for nth in 0..count {
        app.execute::<Order>(format!("{round}-{nth}"), place(&format!("c{}", nth % 7), 1)).await.unwrap();
    }
}

async fn assert_everything_was_applied_once(app: &App, orders: i64) {
    let last = app.execute::<Order>("last", place("c0", 1)).await.unwrap();
    app.wait_for_all(last.position, LONG).await.unwrap();
    for name in ["spend", "journal", "slow"] {
        assert_eq!(assert_accounted(app, name).await, (orders + 1, orders + 1, 0, 0), "{name}");
        let verified = app.verify(name).await.unwrap();
        assert!(verified.equal, "{verified:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_that_are_killed_are_followed_by_others_that_lose_and_repeat_nothing() {
    let (database, folder) = (database().await, Folder::new());
    // This one only writes: in the end it follows, to look.
    let writer = start(database.url(), "writer", Follow::Nothing).await;
    let mut one = start_process(database.url(), "one", &folder);
    for round in 0..4 {
        let name = ["two", "one"][round % 2];
        let two = start_process(database.url(), name, &folder);
        owned_by(&writer, &["one", "two"]).await;

        let begun = Instant::now();
        let ((), ()) = tokio::join!(trade(&writer, round, 60), async { one.kill() });
        owned_by(&writer, &[name]).await;
        println!("taken over after {:?}", begun.elapsed());
        one = two;
    }
    assert_everything_was_applied_once(&writer, 240).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_is_stopped_for_longer_than_its_lease_changes_nothing_when_it_wakes() {
    let (database, folder) = (database().await, Folder::new());
    let writer = start(database.url(), "writer", Follow::Nothing).await;
    let one = start_process(database.url(), "one", &folder);
    owned_by(&writer, &["one"]).await;
    let _two = start_process(database.url(), "two", &folder);
    owned_by(&writer, &["one", "two"]).await;

    for round in 0..2 {
        let pid = one.process.id().to_string();
        let begun = Instant::now();
        let ((), ()) = tokio::join!(trade(&writer, 2 * round, 60), async { signal("STOP", &pid) });
        owned_by(&writer, &["two"]).await;
        println!("taken over after {:?}", begun.elapsed());
        let last = writer.execute::<Order>(format!("stopped-{round}"), place("c1", 1)).await.unwrap();
        writer.wait_for_all(last.position, LONG).await.unwrap();
        // Three leases, from when it was stopped.
        while begun.elapsed().as_secs() < 9 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        signal("CONT", &pid);
        trade(&writer, 2 * round + 1, 60).await;
        owned_by(&writer, &["one", "two"]).await;
    }
    assert_everything_was_applied_once(&writer, 242).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_survives_the_death_of_its_process_and_of_the_server() {
    let (mut server, folder) = (server().await, Folder::new());
    let mut one = start_process(server.url(), "one", &folder);
    let writer = start(server.url(), "writer", Follow::Nothing).await;
    for round in 0..10 {
        let events = (0..1_000).map(|nth| {
            NewEvent::new("Placed", serde_json::json!({"customer": format!("c{}", nth % 97), "cents": 1}).to_string())
        });
        let stream = StreamId::new(format!("order-many-{round}")).unwrap();
        writer.store().append(&stream, ExpectedVersion::Any, events.collect()).await.unwrap();
    }
    let placed = writer.execute::<Order>("placed", place("c1", 1)).await.unwrap();
    writer.wait_for_all(placed.position, LONG).await.unwrap();
    let control = writer.store().followers();
    let rebuilding = |name: &'static str| {
        let control = control.clone();
        async move {
            control.lag().await.is_ok_and(|lag| lag.iter().any(|lag| lag.follower == name && lag.purpose == "rebuild"))
        }
    };

    for (name, kill_server) in [("spend", false), ("slow", true), ("journal", false), ("spend", true)] {
        control.rebuild(name, Some(4_000.0), &by("a test")).await.unwrap();
        eventually("it is being rebuilt", || rebuilding(name)).await;
        if kill_server {
            server.kill();
            server.start().await;
        } else {
            one.kill();
            one = start_process(server.url(), "one", &folder);
        }
        let done = || async { control.lag().await.is_ok() && !rebuilding(name).await };
        eventually("it is rebuilt", done).await;
    }
    writer.wait_for_all(placed.position, LONG).await.unwrap();
    assert_everything_was_applied_once(&writer, 10_001).await;
    let swaps = control.actions(None, 100).await.unwrap().into_iter().filter(|action| action.action == "swap").count();
    assert_eq!(swaps, 4);
}
