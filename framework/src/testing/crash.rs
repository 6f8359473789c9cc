//! Sagas that are killed at every point where something is written.

use std::{
    fmt::Debug,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use tokio::time::sleep;

use super::database::{TestDatabase, database};
use crate::{Annals, App, Builder, Config};

/// How long an app may take to end its sagas, and how often it is asked.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(10);
/// How many crashes are tried at once: each mostly waits.
const AT_ONCE: usize = 4;

/// Runs sagas to their end once for every point at which they write, kills the app there, lets another one go on, and checks that
/// the end is the same as without. Returns how many points there were.
///
/// Each run has a database and a `world` of its own, which stands for whatever is outside. `build` says what the app consists of,
/// for the one that is killed and for the one that goes on; `drive` begins what there is to do, and `end` tells what came of it
/// once every saga has ended, or is stuck.
///
/// Time is real here: retry policies and waits are to be short. The number of runs is that of the points, four at a time.
///
/// A point is right before an append and right after it: what a step did outside, and what nobody recorded, is among them.
///
/// # Panics
/// If an end differs, or does not come; the message says at which point.
pub async fn crash_everywhere<W, T: PartialEq + Debug>(
    world: impl Fn() -> W,
    build: impl Fn(Annals, &W) -> Builder,
    drive: impl AsyncFn(&App, &W),
    end: impl AsyncFn(&App, &W) -> T,
) -> usize {
    let run = async |dies_at: Option<usize>| -> (usize, T) {
        let (database, world) = (database().await, world());
        let config = Config { connect_deadline: LIMIT, ..Config::new(database.url()) };
        let connect = async || Annals::connect(config.clone()).await.unwrap_or_else(|error| panic!("{error}"));
        let start = async |builder: Builder| builder.start().await.unwrap_or_else(|error| panic!("{error}"));
        let builder = build(connect().await, &world);
        let app = start(dies_at.into_iter().fold(builder, Builder::dies_at)).await;
        drive(&app, &world).await;
        let place = dies_at.map_or_else(|| "without a crash".into(), |at| format!("after a crash at write {at}"));
        let is_dead = settles(&app, &place).await;
        let (writes, _) = app.sagas().runtime.writes();
        if !is_dead {
            let came = end(&app, &world).await;
            app.shutdown().await;
            drop_aside(database).await;
            return (writes, came);
        }
        app.shutdown().await;
        let other = start(build(connect().await, &world)).await;
        assert!(!settles(&other, &place).await);
        let came = end(&other, &world).await;
        other.shutdown().await;
        drop_aside(database).await;
        (writes, came)
    };
    let (points, expected) = run(None).await;
    let runs = (1..=points).map(|point| {
        let run = &run;
        async move { (point, run(Some(point)).await.1) }
    });
    let mut runs = stream::iter(runs).buffer_unordered(AT_ONCE);
    while let Some((point, came)) = runs.next().await {
        assert!(
            came == expected,
            "after a crash at write {point} of {points}: {came:#?}, and without one: {expected:#?}"
        );
    }
    points
}

/// Drops a database where no other run waits for the thread.
async fn drop_aside(database: TestDatabase) {
    let _ = tokio::task::spawn_blocking(move || drop(database)).await;
}

/// Waits until the sagas of `app` have seen the whole log and have ended, or are stuck. Returns whether the app died before.
async fn settles(app: &App, place: &str) -> bool {
    let begun = Instant::now();
    loop {
        if app.sagas().runtime.writes().1 {
            return true;
        }
        let end = async || app.store().horizon().await.map(|horizon| horizon.safe);
        // In this order: what was seen has begun, what has begun is counted, and nothing has come since.
        let (at, seen) = (end().await, app.followers());
        let (counts, later) = (app.sagas().summary().await, end().await);
        if let (Ok(at), Ok(counts), Ok(later)) = (at, counts, later) {
            let begins = counts.values().any(|counts| counts.completed + counts.compensated + counts.stuck > 0);
            let ended = counts.values().all(|counts| counts.running == 0);
            if begins && ended && at == later && seen.iter().all(|follower| follower.position >= at) {
                return app.sagas().runtime.writes().1;
            }
        }
        assert!(begun.elapsed() < LIMIT, "{place}, the sagas do not end");
        sleep(PAUSE).await;
    }
}
