//! Expectations: who misses it when something that began does not end.

use std::{marker::PhantomData, time::Duration};

use chrono::{DateTime, Utc};

use super::{Saga, Steps, state::later};
use crate::{Begin, Event, Id, Recorded};

/// Watches over what reactors and others do together: what one event begins, another one ends, in time.
///
/// What does not end in time is listed as a stuck saga under the expectation's name, and told to
/// [`Builder::on_attention`](crate::Builder::on_attention). If it ends later after all, it is completed.
///
/// # When to choose which
/// [`Reactor`](crate::Reactor)s know nothing of each other, so none of them misses what another one left undone: give what they do
/// together an expectation, if its absence would hurt. A [`Saga`] needs none: it knows what it waits for, and is stuck by itself.
///
/// # Example
/// ```
/// use annals::{Event, Expectation, Id, Recorded};
/// use std::time::Duration;
/// # use annals::{Aggregate, Context, testing::recorded};
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Clone, Serialize, Deserialize, JsonSchema)]
/// # pub enum OrderEvent { Placed { cents: i64 }, Returned { charge: String }, Refunded { refund: String } }
/// # impl Event for OrderEvent {}
/// # #[derive(Default, Serialize, Deserialize)]
/// # struct Order;
/// # impl Aggregate for Order {
/// #     const TYPE: &'static str = "order";
/// #     type Command = ();
/// #     type Event = OrderEvent;
/// #     type Error = std::convert::Infallible;
/// #     fn handle(&self, _: &(), _: &Context) -> Result<Vec<OrderEvent>, Self::Error> { Ok(vec![]) }
/// #     fn apply(&mut self, _: &OrderEvent) {}
/// # }
///
/// /// What comes back is paid back within three days.
/// struct Refund;
///
/// impl Expectation for Refund {
///     const NAME: &'static str = "refund";
///     type Event = OrderEvent;
///
///     fn begin(event: &Recorded<OrderEvent>) -> Option<(Id, Duration)> {
///         let within = Duration::from_secs(3 * 86_400);
///         matches!(event.event, OrderEvent::Returned { .. }).then(|| (event.stream.id().into(), within))
///     }
///
///     fn end(event: &Recorded<OrderEvent>) -> Option<Id> {
///         matches!(event.event, OrderEvent::Refunded { .. }).then(|| event.stream.id().into())
///     }
/// }
///
/// let refunded = recorded("order-7", OrderEvent::Refunded { refund: "refund-1".into() });
/// assert_eq!((Refund::begin(&refunded), Refund::end(&refunded)), (None, Some("7".into())));
/// # async fn start(annals: annals::Annals) -> Result<(), annals::StartError> {
///
/// let look = |at: annals::Attention| eprintln!("{} {} needs somebody: {}", at.saga, &*at.id, at.reason);
/// let app = annals.app().aggregate::<Order>().expectation::<Refund>().on_attention(look).start().await?;
/// # Ok(()) }
/// ```
pub trait Expectation: Send + Sync + 'static {
    /// Its stable name, among the sagas': lower case letters, digits and `_`.
    const NAME: &'static str;
    /// Where a new one begins to look at the log.
    const BEGIN: Begin = Begin::Now;
    /// The events it looks at.
    type Event: Event;

    /// What `event` begins, and in which time from then on it is to end.
    fn begin(event: &Recorded<Self::Event>) -> Option<(Id, Duration)>;

    /// What `event` ends.
    fn end(event: &Recorded<Self::Event>) -> Option<Id>;
}

/// An expectation as a saga that only waits.
pub(crate) struct Expected<E>(pub(crate) PhantomData<fn() -> E>);

impl<E: Expectation> Saga for Expected<E> {
    const NAME: &'static str = E::NAME;
    const BEGIN: Begin = E::BEGIN;
    type Event = E::Event;
    type Input = DateTime<Utc>;

    fn start(event: &Recorded<E::Event>) -> Option<(Id, DateTime<Utc>)> {
        E::begin(event).map(|(id, time)| (id, later(event.recorded_at, time)))
    }

    fn route(event: &Recorded<E::Event>) -> Option<Id> {
        E::end(event)
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps.wait("end", |event| E::end(event).map(|_| ())).until(|facts| *facts.input).or_stuck()
    }
}
