//! Three orders of the online shop, for the tour: one that is fulfilled, one that is declined, one whose process is killed.

use std::{path::Path, time::Duration};

use annals::{App, BoxError, Saga, SagaState};
use chrono::Utc;
use tokio::time::{Instant, sleep, timeout};

use super::{Child, books};
use crate::{
    figures::dollars,
    gateway::{Client, Ledger, Switches},
    operate::timeline,
    order::{CustomerId, Line, Order, OrderCommand, OrderId, Sku, StoreId},
    sagas::{Fulfilment, ended},
    say::say,
    stock::{Stock, StockCommand},
    typed,
};

/// How long an order may take in a tour: longer than it takes to notice that a process was killed.
const LONGEST: Duration = Duration::from_secs(60);
/// How slow the gateway is while a process is killed, and how often it is looked what it has done.
const SLOW_MS: u64 = 4_000;
const LOOK: Duration = Duration::from_millis(20);
const BREAD: Sku = Sku(1);

/// Lives through them.
///
/// # Errors
/// Something that should have worked did not.
pub(crate) async fn show(app: &App, customer: CustomerId, data_dir: &Path) -> Result<(), BoxError> {
    app.execute::<Stock>(BREAD, StockCommand::Receive { quantity: 6 }).await?;
    let (gateway, url) = Child::gateway(&books(app, data_dir).await?).await?;
    let client = Client::new(&url)?;
    let worker = Child::worker(data_dir, &url).await?;
    say(format_args!("   a gateway takes payments at {url}, another process runs the sagas\n"))?;

    let order = place(app, customer).await?;
    tell(app, "two loaves, by card", order, &client).await?;
    let text = until(&client, order, "told", |ledger, id| {
        ledger.messages.iter().find(|message| message.order == id).map(|message| message.text.clone())
    });
    say(format_args!("   {:<26} {}", "the customer is told", text.await?))?;

    client.switch(&Switches { declined: 1.0, ..Switches::default() }).await?;
    let order = place(app, customer).await?;
    tell(app, "a card that is declined", order, &client).await?;

    client.switch(&Switches { slow: 1.0, slow_ms: SLOW_MS, ..Switches::default() }).await?;
    let order = place(app, customer).await?;
    // The answer is still on its way then.
    let is_charged = |ledger: &Ledger, id: &str| ledger.charges.iter().any(|charge| charge.order == id).then_some(());
    until(&client, order, "charged", is_charged).await?;
    kill(worker).await?;
    client.switch(&Switches::default()).await?;
    let worker = Child::worker(data_dir, &url).await?;
    tell(app, "the process is killed", order, &client).await?;

    let history = app.sagas().history(Fulfilment::NAME, order).await?;
    let show = typed::command(data_dir, &format!("sagas show {} {order}", Fulfilment::NAME));
    say(format_args!("\n   {show}\n{}\n", timeline(&history)))?;
    worker.end().await;
    gateway.end().await;
    Ok(())
}

async fn place(app: &App, customer: CustomerId) -> Result<OrderId, BoxError> {
    let id = OrderId(Utc::now().timestamp_micros());
    let (product, department) = ("SOURDOUGH BREAD".into(), "BAKERY".into());
    let bread = Line { sku: BREAD, product, department, quantity: 2, amount_cents: 598, discount_cents: 0 };
    let place = OrderCommand::Place { customer, store: StoreId::ONLINE, lines: vec![bread] };
    app.execute::<Order>(id, place).await?;
    Ok(id)
}

/// Waits until an order has ended, and tells what came of it.
async fn tell(app: &App, what: &str, order: OrderId, gateway: &Client) -> Result<(), BoxError> {
    let Ok(ended) = timeout(LONGEST, ended(app, Fulfilment::NAME, &order.into())).await else {
        return Err(format!("order {order} is not fulfilled in {} s", LONGEST.as_secs()).into());
    };
    let ended = ended?;
    let ledger = gateway.ledger().await?;
    let id = order.to_string();
    let charges: Vec<_> = ledger.charges.iter().filter(|charge| charge.order == id).collect();
    let charged: i64 = charges.iter().map(|charge| charge.cents).sum();
    let money = match charges.len() {
        0 => "nothing was charged".into(),
        1 => format!("charged once, {}", dollars(charged)),
        often => format!("charged {often} times, {}", dollars(charged)),
    };
    let why = match (ended.state, ended.reason) {
        (SagaState::Completed, _) => "it is on its way".into(),
        (_, Some(reason)) => format!("the order is cancelled: {reason}"),
        (_, None) => "the order is cancelled".into(),
    };
    Ok(say(format_args!("   {what:<26} {}; {money}; {why}", ended.state.as_str()))?)
}

/// Waits until the gateway's books say so of an order: that it is `done`.
async fn until<T>(
    gateway: &Client,
    order: OrderId,
    done: &str,
    find: impl Fn(&Ledger, &str) -> Option<T>,
) -> Result<T, BoxError> {
    let (id, begun) = (order.to_string(), Instant::now());
    loop {
        if let Some(found) = find(&gateway.ledger().await?, &id) {
            return Ok(found);
        }
        if begun.elapsed() > LONGEST {
            return Err(format!("nobody is {done} for order {order} in {} s", LONGEST.as_secs()).into());
        }
        sleep(LOOK).await;
    }
}

async fn kill(mut worker: Child) -> Result<(), BoxError> {
    worker.kill().await
}
