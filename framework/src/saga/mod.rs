//! Sagas: workflows over several aggregates and the outside world, which end completed, undone, or visibly stuck.
//!
//! ```text
//! log ─► router ─► an instance begins, or gets what it waits for ─► its stream `$<saga>-<id>`
//! engine: (state, input, now) ─► (events, effects) ─► runtime: a step, an undo, a timer ─► one append ─► engine
//! ```

mod control;
mod cx;
mod definition;
pub(crate) mod engine;
mod event;
mod expectation;
mod instance;
mod plan;
mod router;
mod runtime;
pub(crate) mod state;
mod steps;

use serde::{Serialize, de::DeserializeOwned};

pub use self::{
    control::{SagaCounts, SagaFilter, SagaInstance, SagaState, Sagas, StepKeys},
    cx::{Cx, Facts, Found, StepError},
    event::{FailureKind, Outcome, SagaEvent},
    expectation::Expectation,
    plan::RetryPolicy,
    runtime::Attention,
    steps::Steps,
};
pub(crate) use self::{
    definition::{Definition, Typed},
    expectation::Expected,
    router::{check_depth, model},
    runtime::{OnAttention, Runtime},
};
use crate::{Begin, Event, FailurePolicy, Id, Recorded};

/// A workflow of several steps, each with what undoes it.
///
/// An instance begins with an event of the log, runs its steps in order, and ends *completed*; or, when a step fails for good,
/// undoes what was done, the latest first, and ends *compensated*. What cannot go on by itself is *stuck*: visible, and for an
/// operator to retry, skip, resolve or cancel. All of it is in the instance's own stream ([`SagaEvent`]).
///
/// Steps run outside of transactions and at least once, always with the same key ([`Cx::key`]). After a crash, whoever takes an
/// instance over goes on at the step that was recorded. There are no rules of determinism: a step is found by its name.
///
/// # Example
/// ```
/// use annals::{Aggregate, Context, Event, Found, Id, Recorded, RetryPolicy, Saga, StepError, Steps, Target};
/// use std::time::Duration;
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, JsonSchema)]
/// # pub enum OrderEvent { Placed { cents: i64 }, Cancelled { reason: String } }
/// # impl Event for OrderEvent {}
/// # #[derive(Default, Serialize, Deserialize)]
/// # struct Order;
/// # #[derive(Serialize)]
/// # enum OrderCommand { Confirm }
/// # impl Aggregate for Order {
/// #     const TYPE: &'static str = "order";
/// #     type Command = OrderCommand;
/// #     type Event = OrderEvent;
/// #     type Error = std::convert::Infallible;
/// #     fn handle(&self, _: &OrderCommand, _: &Context) -> Result<Vec<OrderEvent>, Self::Error> { Ok(vec![]) }
/// #     fn apply(&mut self, _: &OrderEvent) {}
/// # }
/// # #[derive(Serialize, Deserialize)]
/// # struct Charge { id: String }
/// # struct Gateway;
/// # impl Gateway {
/// #     async fn charge(&self, _: i64, _: uuid::Uuid) -> Result<Charge, StepError> { Err(StepError::transient("down")) }
/// #     async fn find(&self, _: uuid::Uuid) -> Result<Found<Charge>, StepError> { Ok(Found::NotSeen) }
/// #     async fn refund(&self, _: Charge, _: uuid::Uuid) -> Result<(), StepError> { Ok(()) }
/// # }
///
/// /// It remembers keys for a day.
/// const GATEWAY: Target = Target { key_life: Some(Duration::from_secs(86_400)), ..Target::new("gateway") };
///
/// struct Payment { gateway: Gateway }
///
/// impl Saga for Payment {
///     const NAME: &'static str = "payment";
///     type Event = OrderEvent;
///     type Input = i64;
///
///     fn start(event: &Recorded<OrderEvent>) -> Option<(Id, i64)> {
///         match &event.event {
///             OrderEvent::Placed { cents } => Some((event.stream.id().into(), *cents)),
///             _ => None,
///         }
///     }
///
///     fn cancel(event: &Recorded<OrderEvent>) -> Option<(Id, String)> {
///         match &event.event {
///             OrderEvent::Cancelled { reason } => Some((event.stream.id().into(), reason.clone())),
///             _ => None,
///         }
///     }
///
///     fn steps(steps: Steps<Self>) -> Steps<Self> {
///         steps
///             .step("charge", |cx| async move { cx.saga.gateway.charge(*cx.input, cx.key).await })
///             .ask(|cx| async move { cx.saga.gateway.find(cx.key).await })
///             .undo(|cx, charge| async move { cx.saga.gateway.refund(charge, cx.key).await })
///             .calls(GATEWAY)
///             .retry(RetryPolicy::new(8, Duration::from_secs(1)))
///             .command::<Order>("confirm", |cx| Ok((cx.id.clone(), OrderCommand::Confirm)))
///     }
/// }
/// # async fn start(annals: annals::Annals, gateway: Gateway) -> Result<(), annals::StartError> {
///
/// let app = annals.app().aggregate::<Order>().saga(Payment { gateway }).start().await?;
/// # Ok(()) }
/// ```
///
/// # Changing the steps
/// Instances that are under way go on with the steps of the build that runs them:
///
/// | what changes | an instance |
/// | --- | --- |
/// | a step behind where it is, added or removed | runs it, or does not |
/// | a step before where it is, added | leaves it out, which is recorded |
/// | a step that it has before it, moved to before where it is | is stuck until the order is back, or an operator skips the step |
/// | a step that it has done, removed | goes on; it is stuck if that was the last one, or is to be undone |
/// | a step that it is at, removed | is stuck there until the step is back, or an operator skips it |
/// | a step's name | takes it for one that was removed and another one |
/// | what a step comes to, or the input | is stuck where it cannot read what is stored |
/// | an undo, a retry policy | goes by the new one; a deadline is recorded when the step begins |
///
/// For whatever does not fit, raise [`VERSION`](Saga::VERSION).
///
/// # Source
/// H. Garcia-Molina, K. Salem, *Sagas*, 1987.
pub trait Saga: Send + Sync + Sized + 'static {
    /// The saga's stable name: lower case letters, digits and `_`.
    const NAME: &'static str;
    /// Raise it when running instances must not go on under the changed steps. Each ends under the version that it began with,
    /// so keep its type, and register both, until none is left: nobody runs an instance whose version is registered nowhere.
    const VERSION: u32 = 1;
    /// Where a new saga begins to look at the log: at what comes from now on, or at its start.
    const BEGIN: Begin = Begin::Now;
    /// What becomes of an event that cannot be read, or from which no instance can begin.
    const FAILURES: FailurePolicy = FailurePolicy::PARK;
    /// The events it looks at: an aggregate's, or a union of several aggregates'.
    type Event: Event;
    /// What an instance begins with, stored with it.
    type Input: Serialize + DeserializeOwned + Send + Sync + 'static;

    /// Whether `event` begins an instance, with which id and what. The same id begins once.
    fn start(event: &Recorded<Self::Event>) -> Option<(Id, Self::Input)>;

    /// Which instance `event` is for, if one of its steps waits for it, or will.
    fn route(_event: &Recorded<Self::Event>) -> Option<Id> {
        None
    }

    /// Which instance `event` calls off, and why: what it has done is undone. One that has ended, or undoes already, is left as it is.
    fn cancel(_event: &Recorded<Self::Event>) -> Option<(Id, String)> {
        None
    }

    /// The steps, in order, behind none.
    fn steps(steps: Steps<Self>) -> Steps<Self>;
}
