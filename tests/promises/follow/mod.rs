//! P4: a view or projector applies each event exactly once, and never stops in silence.

mod failing;
mod once;
mod owners;
mod parking;
mod processes;
mod projector;
mod rebuild;
mod rebuild_key;
mod replay;
mod setup;
mod swap;
mod verify;
mod views;
mod waking;

use annals::{App, By, Config, DeadLetters, FollowerStatus, Position};

use crate::{
    kit::open_with,
    shop::{Journal, Order, Spend},
};

/// The shop, as a process of its own would run it.
async fn shop(url: &str, change: impl FnOnce(&mut Config)) -> App {
    let mut config = crate::kit::config(url);
    change(&mut config);
    open_with(config).await.app().aggregate::<Order>().view::<Spend>().projector(Journal).start().await.unwrap()
}

/// An app that another process of a test runs.
pub(crate) use self::processes::process;

fn status(app: &App, name: &str) -> FollowerStatus {
    app.followers().into_iter().find(|status| status.name == name).unwrap()
}

/// Where the checkpoint of `name` stands in the database.
async fn checkpoint(app: &App, name: &str) -> Position {
    let position = sqlx::query_scalar("select position from annals.checkpoints where follower = $1").bind(name);
    Position::new(position.fetch_one(app.store().pool()).await.unwrap())
}

fn by(reason: &str) -> By {
    By::new("tests", reason)
}

/// How many events are parked for `name`, as its dead letters have it.
async fn parked(app: &App, name: &str) -> usize {
    app.store().followers().dead_letters(Some(name), &DeadLetters::All, 100_000).await.unwrap().len()
}

/// Every event of `name` is applied, parked or discarded, and the dead letters say so, too.
pub(crate) async fn assert_accounted(app: &App, name: &str) -> (i64, i64, i64, i64) {
    let sums = "select sum(pairs)::bigint, sum(applied)::bigint, sum(parked)::bigint, sum(discarded)::bigint, \
                (select count(*) from annals.dead_letters where follower = $1 and state <> 'discarded'), \
                (select count(*) from annals.dead_letters where follower = $1 and state = 'discarded') \
                from annals.lag where follower = $1 and purpose = 'live'";
    let (pairs, applied, parked, discarded, letters, thrown): (i64, i64, i64, i64, i64, i64) =
        sqlx::query_as(sums).bind(name).fetch_one(app.store().pool()).await.unwrap();
    assert_eq!((applied + parked + discarded, parked, discarded), (pairs, letters, thrown), "{name}");
    (pairs, applied, parked, discarded)
}
