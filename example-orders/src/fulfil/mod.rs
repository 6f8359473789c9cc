//! Orders of the online shop, fulfilled by processes that may be killed, with a gateway that may fail; and whether it all agrees.

mod children;
mod orders;
mod reconcile;
mod show;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use annals::{App, BoxError, Position, Reactor, ReadLog, Saga, SagaCounts, WaitError};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub(crate) use children::Child;
#[cfg(test)]
pub(crate) use reconcile::reconcile;
pub(crate) use show::show;

use self::reconcile::Reconciled;
use crate::{
    figures::{count, dollars},
    gateway::{Client, Switches},
    order::{Order, OrderCommand, OrderId, StoreId},
    sagas::{Fulfilment, Notify},
    say::{note, say_if_read},
    shop::Shop,
    stock::{Stock, StockCommand},
    tables::table,
};

/// How many orders are placed at once.
const AT_ONCE: usize = 32;
/// How often it looks how far the sagas are, and says so.
const LOOK: Duration = Duration::from_millis(100);
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How long nothing may happen before nobody waits any more.
const PATIENCE: Duration = Duration::from_secs(180);

/// How many differences are shown.
const SHOWN: usize = 20;

/// What is to be done.
pub(crate) struct Asked {
    pub(crate) count: usize,
    /// How many processes run the sagas.
    pub(crate) processes: usize,
    /// How often one of them is killed.
    pub(crate) kill_every: Option<Duration>,
    pub(crate) switches: Switches,
    pub(crate) json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Fulfilled {
    placed: usize,
    completed: usize,
    compensated: usize,
    stuck: usize,
    running: usize,
    charged_cents: i64,
    refunded_cents: i64,
    ledger_equal: bool,
    stock_equal: bool,
    #[serde(skip)]
    messages_equal: bool,
    seconds: f64,
}

/// Places orders, waits until each is fulfilled or undone and its customer told, and compares the log with the gateway's books and
/// with the stock. Exit code 1 when anything does not agree; what, stands on standard error.
///
/// # Errors
/// A process cannot be started, or Postgres or the gateway cannot be asked.
pub(crate) async fn run(shop: &Shop, data_dir: &Path, asked: Asked) -> Result<ExitCode, BoxError> {
    let Asked { count: number, processes, kill_every, switches, json } = asked;
    let app = &shop.app;
    let orders = orders::random(number, switches.seed);
    stream::iter(orders::needed(&orders))
        .map(|(sku, quantity)| app.execute::<Stock>(sku, StockCommand::Receive { quantity }))
        .buffer_unordered(AT_ONCE)
        .try_for_each(async |_| Ok(()))
        .await?;

    let books = books(app, data_dir).await?;
    let (gateway, url) = Child::gateway(&books).await?;
    let client = Client::new(&url)?;
    client.switch(&switches).await?;
    note(format_args!("gateway at {url}, its books in {}", books.display()));
    let mut workers = vec![];
    for _ in 0..processes {
        workers.push(Child::worker(data_dir, &url).await?);
    }

    let (begun, before, done) = (Instant::now(), counts(app).await?, CancellationToken::new());
    let ids: BTreeSet<OrderId> = orders.iter().map(|(id, _)| *id).collect();
    let working = async {
        let place = stream::iter(orders).map(Ok).try_for_each_concurrent(AT_ONCE, async |(id, lines)| {
            let place = OrderCommand::Place { customer: orders::CUSTOMER, store: StoreId::ONLINE, lines };
            app.execute::<Order>(id, place).await.map(drop)
        });
        place.await?;
        finish(app, before, number as u64).await?;
        done.cancel();
        Ok((begun.elapsed().as_secs_f64() * 100.0).round() / 100.0)
    };
    let killing = kill(&mut workers, data_dir, &url, kill_every, &done);
    let (seconds, ()) = tokio::try_join!(working, killing)?;
    tell(app).await?;

    let found = reconcile::reconcile(app, &client, Some(&ids)).await?;
    for worker in workers {
        worker.end().await;
    }
    gateway.end().await;
    found.differences.iter().take(SHOWN).for_each(note);
    if found.differences.len() > SHOWN {
        note(format_args!("and {} more: `reconcile` shows them", found.differences.len() - SHOWN));
    }
    let agrees = found.agrees() && found.running == 0 && found.orders == number;
    let Reconciled { completed, compensated, stuck, running, charged_cents, refunded_cents, .. } = found;
    let (ledger_equal, stock_equal) = (found.ledger_equal, found.stock_equal);
    let fulfilled = Fulfilled {
        placed: number,
        completed,
        compensated,
        stuck,
        // One that is not there at all has not ended, either.
        running: running + number.saturating_sub(found.orders),
        charged_cents,
        refunded_cents,
        ledger_equal,
        stock_equal,
        messages_equal: found.messages_equal,
        seconds,
    };
    match json {
        true => say_if_read(serde_json::to_string(&fulfilled)?)?,
        false => say_if_read(fulfilled.text())?,
    }
    Ok(if agrees { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compares what the log says with the books of the gateway at `url`; of the shop's own gateway without it. Exit code 1 when
/// anything does not agree.
///
/// # Errors
/// Postgres or the gateway cannot be asked.
pub(crate) async fn compare(shop: &Shop, data_dir: &Path, url: Option<&str>, json: bool) -> Result<ExitCode, BoxError> {
    let app = &shop.app;
    let (own, url) = match url {
        Some(url) => (None, url.to_owned()),
        None => {
            let (child, url) = Child::gateway(&books(app, data_dir).await?).await?;
            (Some(child), url)
        }
    };
    let found = reconcile::reconcile(app, &Client::new(&url)?, None).await;
    if let Some(own) = own {
        own.end().await;
    }
    let found = found?;
    match json {
        true => {
            found.by_hand.iter().for_each(note);
            say_if_read(serde_json::to_string(&found)?)?;
        }
        false => say_if_read(found.text())?,
    }
    Ok(if found.agrees() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Where the books of the shop's own gateway are: beside the data folder, in a folder for each store.
///
/// # Errors
/// Postgres cannot be asked.
pub(crate) async fn books(app: &App, data_dir: &Path) -> Result<PathBuf, BoxError> {
    // The first event of a store is as unique as the store.
    let first = app.store().read_log_page(ReadLog::default(), 1).await?.events.into_iter().next();
    let Some(first) = first else {
        return Err("nothing was fulfilled here: the store is empty; `fulfil --count 10` places orders".into());
    };
    let mut folder = data_dir.as_os_str().to_owned();
    folder.push("-gateway");
    Ok(PathBuf::from(folder).join(first.event_id.to_string()))
}

async fn counts(app: &App) -> Result<SagaCounts, BoxError> {
    Ok(app.sagas().summary().await?.remove(Fulfilment::NAME).unwrap_or_default())
}

/// Waits until `number` more have ended than `before`, and none runs; or until nothing happens any more.
async fn finish(app: &App, before: SagaCounts, number: u64) -> Result<(), BoxError> {
    let over = |counts: &SagaCounts| counts.completed + counts.compensated + counts.stuck;
    let (mut last, mut changed, mut told) = (before, Instant::now(), Instant::now());
    loop {
        let now = counts(app).await?;
        if over(&now) >= over(&before) + number && now.running == 0 {
            return Ok(());
        }
        if now != last {
            (last, changed) = (now, Instant::now());
        }
        if changed.elapsed() > PATIENCE {
            note(format_args!("nothing has happened for {} s: {} run still", PATIENCE.as_secs(), now.running));
            return Ok(());
        }
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            let ended = over(&now).saturating_sub(over(&before));
            note(format_args!("{} of {} have ended", count(ended as i64), count(number as i64)));
        }
        sleep(LOOK).await;
    }
}

/// Waits until every customer was told what became of the orders so far; or until nothing happens any more.
async fn tell(app: &App) -> Result<(), BoxError> {
    let (end, followers) = (app.store().horizon().await?.safe, app.store().followers());
    let (mut last, mut changed) = ((Position::START, 0), Instant::now());
    while changed.elapsed() < PATIENCE {
        let reached = match app.wait_for(Notify::NAME, end, LOOK).await {
            Ok(()) => end,
            Err(WaitError::Behind { at, .. }) => at,
            Err(error) => return Err(error.into()),
        };
        let parked = followers.dead_letter_groups(Some(Notify::NAME)).await?;
        // What only an operator tries again is not waited for.
        if reached == end && parked.iter().all(|group| group.next_attempt_at.is_none()) {
            return Ok(());
        }
        let now = (reached, parked.iter().map(|group| group.failed).sum());
        if now != last {
            (last, changed) = (now, Instant::now());
        }
        sleep(LOOK).await;
    }
    note(format_args!("nothing has happened for {} s: some customers were not told", PATIENCE.as_secs()));
    Ok(())
}

/// Kills one worker after the other, and starts it again, until all is `done`. Then each of them runs.
async fn kill(
    workers: &mut [Child],
    data_dir: &Path,
    url: &str,
    every: Option<Duration>,
    done: &CancellationToken,
) -> Result<(), BoxError> {
    let Some(every) = every else { return Ok(()) };
    for nth in (0..workers.len()).cycle() {
        // However long one takes to start, it has its time before the next is killed.
        tokio::select! {
            () = sleep(every) => {}
            () = done.cancelled() => break,
        }
        workers[nth].kill().await?;
        workers[nth] = Child::worker(data_dir, url).await?;
    }
    Ok(())
}

impl Fulfilled {
    fn text(&self) -> String {
        let mut table = table(["placed", "completed", "compensated", "stuck", "running"]);
        let figures = [self.placed, self.completed, self.compensated, self.stuck, self.running];
        let [placed, completed, compensated, stuck, running] = figures.map(|figure| count(figure as i64));
        table.add_row([placed, completed, compensated, stuck, running]);
        let word = |equal: bool| if equal { "agree" } else { "do not agree" };
        format!(
            "{table}\ncharged {}, refunded {}: the log and the gateway's books {}\nwhat orders hold of the stock, and what was \
             delivered, {}\nwhat happened to orders, and what customers were told, {}\n{} s, {} orders a second",
            dollars(self.charged_cents),
            dollars(self.refunded_cents),
            word(self.ledger_equal),
            word(self.stock_equal),
            word(self.messages_equal),
            self.seconds,
            (self.placed as f64 / self.seconds.max(0.01)).round(),
        )
    }
}
