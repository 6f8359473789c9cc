//! A tour: real orders become events and read models, one order is lived through, and three are fulfilled.

use std::path::Path;

use annals::{App, BoxError, ExecuteError, ReadStream, Receipt, StreamId};
use chrono::Utc;
use futures::TryStreamExt;
use tokio_util::sync::CancellationToken;

use crate::{
    figures::{count, dollars},
    fulfil,
    import::{Ending, Import, Source},
    order::{CustomerId, Line, Order, OrderCommand, OrderError, OrderId, Sku, StoreId},
    read_models::{CustomerSpend, OpenOrder, OrderSearch},
    report,
    say::say,
    shop::Shop,
    signals::until,
    tables::table,
    typed,
};

static SAMPLE: &[u8] = include_bytes!("../data/orders-sample.csv");

const ADA: CustomerId = CustomerId(18_151_210);

/// Gives the tour.
///
/// # Errors
/// Something that should have worked did not.
pub(crate) async fn run(shop: &Shop, data_dir: &Path, stop: &CancellationToken) -> Result<(), BoxError> {
    say(format_args!("{}\n", shop.origin()))?;
    say("1. A thousand real orders of another system become events\n")?;
    let (summary, ending) = Import::open(Source::of(SAMPLE)?, None)?.run(&shop.app, stop).await?;
    say(format_args!("{}\n", summary.text()))?;
    match ending {
        Ending::Stopped { .. } => return Ok(()),
        Ending::Failed { error, .. } => return Err(error.into()),
        Ending::Complete | Ending::EndsEarly { .. } => {}
    }

    until(stop, show(&shop.app, data_dir)).await.map(drop)
}

/// Everything but the import: short, and safe to leave at any moment.
async fn show(app: &App, data_dir: &Path) -> Result<(), BoxError> {
    say("2. Read models follow them by themselves\n")?;
    report::print(app).await?;

    say("3. One order from its first click to its end\n")?;
    let id = OrderId(Utc::now().timestamp_millis());
    live_through(app, id).await?;

    say("4. Its history, as it will be read in ten years\n")?;
    print_history(app, id).await?;

    say("5. Orders of the online shop are paid and shipped, or all of it is undone\n")?;
    fulfil::show(app, ADA, data_dir).await?;
    print_what_next(data_dir)
}

/// Places, changes, confirms and cancels an order. One command is refused.
async fn live_through(app: &App, id: OrderId) -> Result<(), BoxError> {
    let bread = line(1, "SOURDOUGH BREAD", "BAKERY", 2, 598);
    let tea = line(2, "EARL GREY TEA", "GROCERY", 1, 449);
    let place = OrderCommand::Place { customer: ADA, store: StoreId(1), lines: vec![bread.clone()] };
    let placed = tell("place two loaves of bread", app.execute::<Order>(id, place).await)?;

    if let Some(receipt) = placed {
        report::catch_up(app, receipt.position).await?;
    }
    let open = app.get::<OpenOrder>(id).await?.map_or(0, |open| open.amount_cents);
    let spend = app.get::<CustomerSpend>(ADA).await?.unwrap_or_default();
    let (open, spent) = (dollars(open), dollars(spend.amount_cents));
    say(format_args!("     read models: the order is open with {open}, customer {ADA} is at {spent}"))?;

    let change = OrderCommand::ChangeLines { lines: vec![bread, tea] };
    tell("add tea", app.execute::<Order>(id, change).await)?;
    tell("ship it at once", app.execute::<Order>(id, OrderCommand::Ship).await)?;
    tell("confirm", app.execute::<Order>(id, OrderCommand::Confirm).await)?;
    tell("confirm again", app.execute::<Order>(id, OrderCommand::Confirm).await)?;
    let cancel = OrderCommand::Cancel { reason: "found it cheaper".into() };
    let cancelled = tell("cancel", app.execute::<Order>(id, cancel).await)?;

    if let Some(receipt) = cancelled {
        report::catch_up(app, receipt.position).await?;
    }
    say("\n   Orders with \"earl grey\", by the table of the projector order_search\n")?;
    let mut found = table(["order", "customer", "placed", "status", "lines", "amount", "products"]);
    for order in OrderSearch::find(app.store().pool(), "earl grey", 3).await? {
        let placed = order.placed_at.format("%Y-%m-%d").to_string();
        let (customer, lines) = (order.customer.to_string(), count(order.lines));
        let amount = dollars(order.amount_cents);
        found.add_row([order.id, customer, placed, order.status, lines, amount, order.products]);
    }
    Ok(say(format_args!("{found}\n"))?)
}

fn line(sku: i64, product: &str, department: &str, quantity: i64, amount_cents: i64) -> Line {
    let (product, department) = (product.into(), department.into());
    Line { sku: Sku(sku), product, department, quantity, amount_cents, discount_cents: 0 }
}

/// Tells what became of a command. A refusal is an answer, not an error.
fn tell(what: &str, outcome: Result<Receipt, ExecuteError<OrderError>>) -> Result<Option<Receipt>, BoxError> {
    match outcome {
        Ok(receipt) if receipt.appended == 0 => say(format_args!("   {what:<26} nothing to do"))?,
        Ok(receipt) => {
            say(format_args!("   {what:<26} version {}, position {}", receipt.version, receipt.position))?;
            return Ok(Some(receipt));
        }
        Err(ExecuteError::Rejected(rule)) => say(format_args!("   {what:<26} refused: {rule}"))?,
        Err(error) => return Err(error.into()),
    }
    Ok(None)
}

async fn print_history(app: &App, id: OrderId) -> Result<(), BoxError> {
    let stream = StreamId::of("order", id)?;
    let events: Vec<_> = app.store().read_stream(&stream, ReadStream::default()).try_collect().await?;
    say(format_args!("   {stream}"))?;
    for event in events {
        let time = event.recorded_at.format("%H:%M:%S%.3f");
        let payload = event.event.as_str();
        let shown: String = payload.chars().take(70).collect();
        let more = if shown.len() < payload.len() { "…" } else { "" };
        let (version, event_type) = (event.version, event.event_type);
        say(format_args!("   {version:>3}  {time}  {event_type:<16} {shown}{more}"))?;
    }
    Ok(say("")?)
}

fn print_what_next(data_dir: &Path) -> Result<(), BoxError> {
    say("What to type next\n")?;
    for (arguments, what) in [
        ("report", "the read models again"),
        ("import FILE.csv.gz", "orders of your own"),
        ("projections list", "how far each read model is"),
        ("fulfil --count 100", "orders of the online shop, and whether all books agree"),
        ("sagas list", "where each of them stands"),
        ("plant-poison", "an event that none of them can read"),
        ("--help", "everything else"),
    ] {
        say(format_args!("   {}{what}", typed::command(data_dir, &format!("{arguments:<20}"))))?;
    }
    Ok(())
}
