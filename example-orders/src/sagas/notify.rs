//! Customers are told what becomes of their orders.

use std::time::Duration;

use annals::{FailurePolicy, Reaction, Reactor, ReadStream, Recorded, StepError, Target};

use super::PATIENT;
use crate::{
    figures::dollars,
    gateway::{Client, ToSend},
    order::{OrderEvent, StoreId},
};

/// Whoever carries messages to customers. It never forgets a key; one that is down is asked every 20 s whether it is back.
const MESSAGES: Target = Target { open_for: Duration::from_secs(20), ..Target::new("messages") };

/// Tells customers of the online shop that their order is on its way, was cancelled, or was paid back.
///
/// A message goes out under the reaction's key, so a customer is told once, whatever becomes of answers. What is older than a day is no
/// news any more, and is left out. What is superseded is sent all the same ([`Reactor::SKIP_IF_SUPERSEDED`] stays off): each
/// message says what happened, not how things stand, and whoever has sent an order back may know when it had left.
pub(crate) struct Notify {
    pub(crate) messages: Client,
}

impl Reactor for Notify {
    const NAME: &'static str = "notify";
    const FAILURES: FailurePolicy = PATIENT;
    const SKIPS: &'static [&'static str] =
        &["OrderPlaced", "LinesChanged", "OrderConfirmed", "OrderReturned", "PastOrderRecorded"];
    const TARGET: Option<Target> = Some(MESSAGES);
    const MAX_AGE: Option<Duration> = Some(Duration::from_secs(86_400));
    type Event = OrderEvent;

    async fn react(&self, reaction: Reaction<OrderEvent>) -> Result<(), StepError> {
        let Some(message) = message(&reaction.event) else { return Ok(()) };
        if is_online(&reaction).await? {
            self.messages.send(reaction.key, &message).await?;
        }
        Ok(())
    }
}

/// What the customer is told of an event, if anything.
pub(crate) fn message(recorded: &Recorded<OrderEvent>) -> Option<ToSend> {
    let order = recorded.stream.id();
    let (customer, text) = match &recorded.event {
        OrderEvent::OrderShipped { customer } => (customer, format!("Your order {order} is on its way.")),
        OrderEvent::OrderCancelled { purchase, reason } => {
            (&purchase.customer, format!("Your order {order} was cancelled: {reason}."))
        }
        OrderEvent::OrderRefunded { customer, cents, .. } => {
            (customer, format!("Your order {order} is back with us, and {} with you.", dollars(*cents)))
        }
        OrderEvent::OrderPlaced(_)
        | OrderEvent::LinesChanged { .. }
        | OrderEvent::OrderConfirmed { .. }
        | OrderEvent::OrderReturned { .. }
        | OrderEvent::PastOrderRecorded(_) => return None,
    };
    Some(ToSend { customer: customer.to_string(), order: order.into(), text })
}

/// Whether the order was placed online: its first event says so.
async fn is_online(reaction: &Reaction<OrderEvent>) -> Result<bool, StepError> {
    let app = reaction.app();
    let page = app.store().read_stream_page(&reaction.event.stream, ReadStream::default(), 1).await?;
    let first = page.events.first().map(|first| app.decode::<OrderEvent>(first)).transpose();
    let first = first.map_err(StepError::business)?;
    let purchase = first.as_ref().and_then(|first| first.event.sold());
    Ok(purchase.is_some_and(|purchase| purchase.store == StoreId::ONLINE))
}
