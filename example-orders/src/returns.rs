//! An order that was sent back, as a person types it: what comes of it is the reactors' and the expectation's.

use std::{path::Path, process::ExitCode, time::Duration};

use annals::{
    Aggregate, App, BoxError, DeadLetters, ExecuteError, Expectation, Reactor, SagaState, StreamId, WaitError,
};
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    figures::dollars,
    fulfil::{Child, books},
    gateway::Client,
    operate::timeline,
    order::{Order, OrderCommand, OrderEvent, OrderId},
    sagas::{Notify, PayBack, RETURNS, Refund, Restock, Sagas, ended},
    say::{note, say_if_read},
    shop::{self, Role, Shop, is_run},
    typed,
};

/// How long a refund may take until it is there or missed, and then what else comes of a return.
const LONGEST: Duration = Duration::from_secs(60);

/// What is to be returned.
pub(crate) struct Asked {
    pub(crate) order: OrderId,
    pub(crate) reason: String,
    /// Where the gateway is; without it, one with the books that `fulfil` left.
    pub(crate) gateway: Option<String>,
    pub(crate) json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Returned {
    order: OrderId,
    /// Of the expectation: completed, stuck, or what an operator has made of it.
    state: &'static str,
    refunded_cents: i64,
    /// What keeps it.
    failures: Vec<Failure>,
}

/// What a reactor has not done about the order yet.
#[derive(Debug, Serialize)]
struct Failure {
    reactor: String,
    error: String,
}

/// Returns an order, and waits until it is paid back or its refund is missed. What no other process runs of it, runs here for as
/// long. Exit code 1 when it is not paid back.
///
/// # Errors
/// The order cannot be returned, nobody sees to it, or Postgres or the gateway cannot be asked.
pub(crate) async fn run(shop: &Shop, data_dir: &Path, asked: Asked) -> Result<ExitCode, BoxError> {
    let Asked { order, reason, gateway, json } = asked;
    let command = OrderCommand::Return { reason };
    match shop.app.execute::<Order>(order, command).await {
        Ok(_) => {}
        Err(ExecuteError::Rejected(why)) => {
            let list = typed::command(data_dir, "sagas list fulfilment --state completed");
            return Err(format!("order {order} is not returned: {why}; `{list}` shows what can be").into());
        }
        Err(error) => return Err(error.into()),
    }
    let here = Here::start(shop, data_dir, gateway).await;
    let here = here.map_err(|error| format!("order {order} is returned, and nobody pays it back yet: {error}"))?;
    let returned = follow(&shop.app, order).await;
    let own_gateway = here.end().await;
    let returned = returned?;
    let is_paid_back = returned.refunded_cents > 0 || returned.state == SagaState::Completed.as_str();
    if json {
        say_if_read(serde_json::to_string(&returned)?)?;
    } else {
        let history = shop.app.sagas().history(Refund::NAME, order).await?;
        say_if_read(format_args!("refund {order}: {}\n{}", returned.state, timeline(&history)))?;
        say_if_read(returned.text())?;
        if !is_paid_back {
            say_if_read(hints(data_dir, order, own_gateway.as_deref()))?;
        }
    }
    Ok(if is_paid_back { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What this process runs of a return, if nobody else does.
struct Here {
    app: Option<App>,
    gateway: Option<(Child, String)>,
}

impl Here {
    /// Runs reactors and expectation, with a gateway if none is named, unless other processes run them all.
    async fn start(shop: &Shop, data_dir: &Path, url: Option<String>) -> Result<Self, BoxError> {
        let store = shop.app.store();
        let mut run_elsewhere = 0;
        for name in RETURNS {
            run_elsewhere += usize::from(is_run(store, name).await?);
        }
        if run_elsewhere == RETURNS.len() {
            return Ok(Self { app: None, gateway: None });
        }
        let (gateway, url) = match url {
            Some(url) => (None, url),
            None => {
                let books = books(&shop.app, data_dir).await?;
                let started = Child::gateway(&books).await;
                let (child, url) =
                    started.map_err(|error| format!("{error}; if one runs, say where with --gateway URL"))?;
                (Some((child, books.display().to_string())), url)
            }
        };
        let sagas = Sagas { gateway: Client::new(&url)?, runs: &RETURNS, crash: false };
        let (app, _) = shop::start(shop.url(), Role::Onlooker, Some(&sagas)).await?;
        Ok(Self { app: Some(app), gateway })
    }

    /// Ends it in good order. Returns where the books are of a gateway that ran here.
    async fn end(self) -> Option<String> {
        if let Some(app) = self.app {
            app.shutdown().await;
        }
        let (gateway, books) = self.gateway?;
        gateway.end().await;
        Some(books)
    }
}

/// Waits for what comes of a return, and says what did.
async fn follow(app: &App, order: OrderId) -> Result<Returned, BoxError> {
    let Ok(ended) = timeout(LONGEST, ended(app, Refund::NAME, &order.into())).await else {
        let why = format!("order {order} is returned, and nobody saw to it for {} s", LONGEST.as_secs());
        return Err(format!("{why}: is {} paused? `sagas resume {}` lets it go on", Refund::NAME, Refund::NAME).into());
    };
    let state = ended?.state;
    if state == SagaState::Completed {
        // It is paid back. What else there is to do was tried once each of these stands behind it.
        let end = app.store().horizon().await?.safe;
        for name in [Restock::NAME, Notify::NAME] {
            match app.wait_for(name, end, LONGEST).await {
                Err(error @ WaitError::Behind { .. }) => note(error),
                waited => waited?,
            }
        }
    }
    let stream = StreamId::of(Order::TYPE, order)?;
    let failures = failures(app, &stream).await?;
    Ok(Returned { order, state: state.as_str(), refunded_cents: refunded(app, &stream).await?, failures })
}

/// What the reactors have not done about an order, and why.
async fn failures(app: &App, stream: &StreamId) -> Result<Vec<Failure>, BoxError> {
    let followers = app.store().followers();
    let mut failures = vec![];
    for lag in followers.lag().await?.into_iter().filter(|lag| RETURNS.contains(&&*lag.follower)) {
        let letters = followers.dead_letters(Some(&lag.follower), &DeadLetters::Key(stream.to_string()), 1).await?;
        let parked = letters.into_iter().next().and_then(|letter| letter.error);
        if let Some(error) = parked.or(lag.reason) {
            failures.push(Failure { reactor: lag.follower, error });
        }
    }
    Ok(failures)
}

/// What was paid back for an order.
async fn refunded(app: &App, stream: &StreamId) -> Result<i64, BoxError> {
    let page = app.store().read_stream_page(stream, annals::ReadStream::default(), 100).await?;
    let mut paid_back = 0;
    for stored in &page.events {
        if let OrderEvent::OrderRefunded { cents, .. } = app.decode(stored)?.event {
            paid_back += cents;
        }
    }
    Ok(paid_back)
}

impl Returned {
    /// For people.
    fn text(&self) -> String {
        let mut text = match self.refunded_cents {
            0 => format!("order {} is returned, and not paid back", self.order),
            cents => format!("order {} is returned, and {} paid back", self.order, dollars(cents)),
        };
        for Failure { reactor, error } in &self.failures {
            text.push_str(&format!("\n   {reactor}: {error}"));
        }
        text
    }
}

/// What to type about an order that is not paid back; `books` are those of a gateway that ran here.
fn hints(data_dir: &Path, order: OrderId, books: Option<&str>) -> String {
    let mut hints = vec![(format!("sagas list {}", Refund::NAME), "which returns are not paid back in time")];
    hints.push((format!("dead-letters list {}", PayBack::NAME), "why"));
    if let Some(books) = books {
        hints.push((format!("gateway --data {}", typed::quoted(books)), "in another terminal: who pays back"));
        hints.push(("work".into(), "in a third: who has it done"));
    }
    hints
        .push((format!("dead-letters retry {}", PayBack::NAME), "once the cause is mended: the refund is tried again"));
    hints.push((format!("sagas show {} {order}", Refund::NAME), "completes itself once it is paid back after all"));
    let lines = hints.iter().map(|(what, why)| format!("   {}\n       {why}", typed::command(data_dir, what)));
    format!("What to type next\n\n{}", lines.collect::<Vec<_>>().join("\n"))
}
