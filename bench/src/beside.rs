//! Appends while read models are rebuilt, are dead, or fail.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use annals::{Annals, App, BoxError, By, FollowerState, Followers, Position, View};
use tokio::time::{sleep, timeout};

use crate::{
    append::{Counter, append_to, append_while, note},
    measure::Figures,
    models::{Everything, FAILS, Failing, FailingTable, HALTS, QUEUES},
    read::{LONG, Order, Sale, connect, fill},
    server::{self, Server},
};

const CALLERS: usize = 32;
/// A rebuild stores what it has every few seconds: with less, its rate cannot be told.
const SECONDS_OF_REBUILD: u64 = 15;

/// What is wrong with the followers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// They have halted, all of them.
    Dead,
    /// Every event fails.
    Poison,
    /// Every stream's first event fails, and the others wait behind it.
    Queue,
}

/// Appends beside followers in trouble; the limit has no followers.
pub(crate) async fn in_trouble(
    server: &Server,
    trouble: Trouble,
    seconds: u64,
) -> Result<(Figures, Figures), BoxError> {
    let ours = appends(server, Some(trouble), seconds).await?;
    Ok((ours, appends(server, None, seconds).await?))
}

async fn appends(server: &Server, trouble: Option<Trouble>, seconds: u64) -> Result<Figures, BoxError> {
    let store = "bench_beside";
    server.drop_with_models(store).await?;
    server::forget_peak();
    let annals = connect(server, store).await?;
    let app = annals.app().aggregate::<Counter>();
    let app = match trouble {
        None => app,
        Some(Trouble::Dead) => app.view::<Failing<HALTS>>().projector(FailingTable),
        Some(Trouble::Poison) => app.view::<Failing<FAILS>>(),
        Some(Trouble::Queue) => app.view::<Failing<QUEUES>>(),
    };
    let app = app.start().await?;
    app.wait_for_all(Position::START, LONG).await?;
    if trouble == Some(Trouble::Dead) {
        append_to(&annals, &note(), 1, 1, 1).await?;
        timeout(LONG, all_halted(&app)).await?;
    }
    server.settle().await?;
    let figures = append_to(&annals, &note(), 1, CALLERS, seconds).await?;
    let resident_mb = server::own_peak();
    let note = tell(&app, &annals).await?;
    app.shutdown().await;
    server.drop_with_models(store).await?;
    Ok(Figures { resident_mb, note: trouble.map(|_| note), ..figures })
}

async fn all_halted(app: &App) {
    while app.followers().iter().any(|follower| follower.state != FollowerState::Halted) {
        sleep(Duration::from_millis(20)).await;
    }
}

/// What has become of the followers.
async fn tell(app: &App, annals: &Annals) -> Result<String, BoxError> {
    let lag = annals.followers().lag().await?;
    let tell = |status: annals::FollowerStatus| {
        let parked: i64 = lag.iter().filter(|lag| lag.follower == status.name).map(|lag| lag.parked).sum();
        format!("{} is {:?}, {parked} events parked, {} behind", status.name, status.state, status.behind)
    };
    Ok(app.followers().into_iter().map(tell).collect::<Vec<_>>().join("; "))
}

/// Appends while a view of a log of `events` events is rebuilt; the limit is the same app before.
pub(crate) async fn in_rebuild(server: &Server, events: usize, seconds: u64) -> Result<(Figures, Figures), BoxError> {
    let (store, seconds) = ("bench_rebuilding", seconds.max(SECONDS_OF_REBUILD));
    server.drop_with_models(store).await?;
    fill(server, store, events, events / 10, Order::Written).await?;
    let annals = connect(server, store).await?;
    let app = annals.app().aggregate::<Sale>().aggregate::<Counter>().view::<Everything>().start().await?;
    app.wait_for_all(annals.horizon().await?.safe, LONG).await?;
    server.settle().await?;
    let limit = append_to(&annals, &note(), 1, CALLERS, seconds).await?;
    app.wait_for_all(annals.horizon().await?.safe, LONG).await?;
    server.settle().await?;

    server::forget_peak();
    let (followers, end) = (annals.followers(), annals.horizon().await?.safe);
    followers.rebuild(Everything::NAME, None, &By::new("bench", "to measure beside it")).await?;
    while rebuilt_to(&followers).await?.is_none() {
        sleep(Duration::from_millis(20)).await;
    }
    let (rebuilding, text) = (AtomicBool::new(true), note());
    let watching = async {
        let rate = rate_of_rebuild(&followers, end, Duration::from_secs(seconds)).await;
        rebuilding.store(false, Ordering::Relaxed);
        rate
    };
    let appending = append_while(&annals, &text, 1, CALLERS, || rebuilding.load(Ordering::Relaxed));
    let (ours, rate) = tokio::join!(appending, watching);
    let note = format!("the rebuild made {:.0} events/s beside the appends", rate?);
    let ours = Figures { resident_mb: server::own_peak(), note: Some(note), ..ours? };
    app.shutdown().await;
    server.drop_with_models(store).await?;
    Ok((ours, limit))
}

/// Up to where a rebuild has stored what it makes; none if there is no rebuild.
async fn rebuilt_to(followers: &Followers) -> Result<Option<Position>, BoxError> {
    let lag = followers.lag().await?;
    Ok(lag.iter().find(|lag| lag.purpose == "rebuild").map(|lag| lag.position))
}

/// Watches a rebuild for as long as it is under way, `longest` at most. Events a second, from one time that it stored what it
/// had to another; one that is over has come to `end` at least.
async fn rate_of_rebuild(followers: &Followers, end: Position, longest: Duration) -> Result<f64, BoxError> {
    let begun = Instant::now();
    let mut stored = vec![(begun, Position::START)];
    loop {
        let position = rebuilt_to(followers).await?;
        let now = (Instant::now(), position.unwrap_or(end));
        if stored.last().is_some_and(|(_, last)| *last < now.1) {
            stored.push(now);
        }
        if position.is_none() || begun.elapsed() >= longest {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    // The first stretch begins without the pause that belongs to each: it counts only if there is no other.
    let (first, last) = match &stored[..] {
        [_, first, .., last] | [first, last] => (first, last),
        _ => return Err("the rebuild stored nothing: give it more --seconds, or more --events".into()),
    };
    Ok((last.1.get() - first.1.get()) as f64 / (last.0 - first.0).as_secs_f64())
}
