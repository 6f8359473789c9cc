//! An event that no read model of the shop can read, planted to see what becomes of it.

use std::{path::Path, process::ExitCode, time::Duration};

use annals::{Aggregate, BoxError, ExpectedVersion, NewEvent, ReadStream, StreamId};
use chrono::Utc;

use super::model::{Model, models};
use crate::{
    order::{CustomerId, Line, Order, OrderEvent, OrderId, Purchase, Sku, StoreId},
    say::say,
    shop::Shop,
    typed,
};

/// How long the read models may take to park it.
const LIMIT: Duration = Duration::from_secs(30);

/// What stands in for the purchase of an order: an event of another program, or of one that had a fault.
const POISON: &str = r#"{"customer":"somebody","lines":"three loaves of bread"}"#;

/// Appends the event and a good one behind it, waits until every read model that is not held has parked them, and says what to
/// look at.
///
/// # Errors
/// The events cannot be stored, or a read model does not come that far.
pub(crate) async fn plant(shop: &Shop, data_dir: &Path) -> Result<ExitCode, BoxError> {
    let store = shop.app.store();
    let stream = StreamId::of(Order::TYPE, OrderId(Utc::now().timestamp_millis()))?;
    let events = vec![NewEvent::new("OrderPlaced", POISON), NewEvent::of(&OrderEvent::OrderPlaced(purchase()?))?];
    let receipt = store.append(&stream, ExpectedVersion::NoStream, events).await?;
    let stored = store.read_stream_page(&stream, ReadStream::default(), 1).await?;
    let position = stored.events.first().map_or(receipt.position, |event| event.position);
    say(format_args!(
        "An OrderPlaced that nobody can read stands at position {position}, stream {stream}; a good event behind it."
    ))?;

    let (held, going): (Vec<_>, Vec<_>) =
        models(&store.followers()).await?.into_iter().partition(|model| model.live.is_held());
    for model in &going {
        shop.app.wait_for(&model.name, receipt.position, LIMIT).await?;
    }
    let names: Vec<&str> = going.iter().map(|model| &*model.name).collect();
    match names[..] {
        [] => say("No read model has come to them, for every one is held.")?,
        _ => say(format_args!("Parked by {}, where all other orders go on.", names.join(", ")))?,
    }
    for Model { name, live, .. } in &held {
        let resume = typed::command(data_dir, &format!("projections resume {name}"));
        say(format_args!("{name} is {} and has not come to them; it does after\n   {resume}", live.state))?;
    }
    let [first, ..] = names[..] else { return Ok(ExitCode::SUCCESS) };
    say("What to type next\n")?;
    let names = names.join(" ");
    for (arguments, what) in [
        ("projections list".to_owned(), "shows 2 more parked events in each of them"),
        ("dead-letters list".to_owned(), "why, how many, since when"),
        (format!("dead-letters show {first} {position}"), "the event itself"),
        (
            format!("dead-letters retry {first}"),
            "tries both again; in vain, unless the program has learned to read them",
        ),
        (
            format!("dead-letters discard {names} --event {position} --reason \"not an order\""),
            "goes on without it: the good event behind it takes effect",
        ),
    ] {
        say(format_args!("   {}\n       {what}", typed::command(data_dir, &arguments)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A small order of nobody in particular.
fn purchase() -> Result<Purchase, BoxError> {
    let (product, department) = ("RYE BREAD".into(), "BAKERY".into());
    let bread = Line { sku: Sku(1), product, department, quantity: 3, amount_cents: 897, discount_cents: 0 };
    Ok(Purchase::new(CustomerId(0), StoreId(1), Utc::now(), vec![bread])?)
}
