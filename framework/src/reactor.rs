//! Reactors: an event in, commands or calls out, and no state of their own.

use std::{future::Future, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::time::{timeout, timeout_at};
use uuid::Uuid;

use crate::{
    Aggregate, App, Begin, Event, FailureKind, FailurePolicy, Id, InvalidInput, Options, Payload, Receipt, Recorded,
    StepError, StreamId, Target, Version,
    event::contract::Contracts,
    saga::{Runtime, check_depth},
    store::Annals,
    subscription::{Done, EffectFollower, FollowError, Handle, Model, Time},
};

/// Does something about each event: sends a message, has another aggregate do something (choreography).
///
/// It gets the events of a stream in order, those of several streams side by side, and each at least once: what it does, it does
/// under [`Reaction::key`]. One that fails is tried again and then parked, with the later events of its stream behind it
/// ([`FailurePolicy`]). It begins with what comes after its first start, and nothing is rebuilt by it.
///
/// # When to choose which
/// - A reactor, where one thing follows from another and nobody waits for it. Each knows only the event: one more is added without
///   touching the others. Nobody undoes what it did.
/// - A [`Saga`](crate::Saga), where several steps belong together: in an order, with what each came to, and undone together when one
///   fails for good.
/// - An [`Expectation`](crate::Expectation) beside reactors that have an end together: without it, nobody misses what did not happen.
///
/// # Example
/// ```
/// use annals::{Aggregate, Context, Event, FailurePolicy, Reaction, Reactor, StepError, Target};
/// use std::time::Duration;
/// # use schemars::JsonSchema;
/// # use serde::{Deserialize, Serialize};
/// # #[derive(Serialize, Deserialize, JsonSchema)]
/// # pub enum OrderEvent { Placed { cents: i64 }, Returned { charge: String }, Refunded { refund: String } }
/// # impl Event for OrderEvent {}
/// # #[derive(Default, Serialize, Deserialize)]
/// # struct Order;
/// # #[derive(Serialize)]
/// # enum OrderCommand { RecordRefund { refund: String } }
/// # impl Aggregate for Order {
/// #     const TYPE: &'static str = "order";
/// #     type Command = OrderCommand;
/// #     type Event = OrderEvent;
/// #     type Error = std::convert::Infallible;
/// #     fn handle(&self, _: &OrderCommand, _: &Context) -> Result<Vec<OrderEvent>, Self::Error> { Ok(vec![]) }
/// #     fn apply(&mut self, _: &OrderEvent) {}
/// # }
/// # struct Gateway;
/// # impl Gateway {
/// #     async fn refund(&self, _: &str, _: uuid::Uuid) -> Result<String, StepError> { Err(StepError::transient("down")) }
/// # }
///
/// /// Pays back what comes back, and has the order record it.
/// struct PayBack { gateway: Gateway }
///
/// impl Reactor for PayBack {
///     const NAME: &'static str = "pay_back";
///     const TARGET: Option<Target> = Some(Target::new("gateway"));
///     // For a minute, and then when an operator says so.
///     const FAILURES: FailurePolicy =
///         FailurePolicy { attempts: 12, ceiling: Duration::from_secs(10), ..FailurePolicy::PARK };
///     type Event = OrderEvent;
///
///     async fn react(&self, reaction: Reaction<OrderEvent>) -> Result<(), StepError> {
///         let OrderEvent::Returned { charge } = &reaction.event.event else { return Ok(()) };
///         // Both take place once, however often this is tried: the gateway knows the key, the order the command's id.
///         let refund = self.gateway.refund(charge, reaction.key).await?;
///         let order = reaction.event.stream.id();
///         reaction.execute::<Order>(order, OrderCommand::RecordRefund { refund }).await?;
///         Ok(())
///     }
/// }
/// # async fn start(annals: annals::Annals, gateway: Gateway) -> Result<(), annals::StartError> {
///
/// let app = annals.app().aggregate::<Order>().reactor(PayBack { gateway }).start().await?;
/// # Ok(()) }
/// ```
pub trait Reactor: Send + Sync + 'static {
    /// The reactor's stable name: lower case letters, digits and `_`.
    const NAME: &'static str;
    /// Where a new reactor begins.
    const BEGIN: Begin = Begin::Now;
    /// What becomes of an event that fails, and how often it is tried. One event has a fourth of [`FailurePolicy::deadline`], 45 s at
    /// most, without the wait for its turn to call. However many there are, none is cut off for it: what cannot begin in half of
    /// the deadline has its turn in the next batch.
    const FAILURES: FailurePolicy = FailurePolicy::PARK;
    /// How many partitions it begins with, each with the streams of its own.
    const PARTITIONS: u32 = 1;
    /// Event types, among those of its categories, that it does not want and need not be able to read.
    const SKIPS: &'static [&'static str] = &[];
    /// Whom it calls: while the circuit breaker before them is open, it waits.
    const TARGET: Option<Target> = None;
    /// How old an event may be. An older one is left out, which is recorded: yesterday's backlog is no news.
    const MAX_AGE: Option<Duration> = None;
    /// Whether an event is left out whose stream has gone on since. That is recorded, too.
    const SKIP_IF_SUPERSEDED: bool = false;
    /// The events it reads: an aggregate's, or a union of several aggregates'.
    type Event: Event;

    /// Does what follows from an event.
    ///
    /// # Errors
    /// Whatever kept it: the event is tried again under the same key, as [`Reactor::FAILURES`] says, of whichever kind it is.
    fn react(&self, reaction: Reaction<Self::Event>) -> impl Future<Output = Result<(), StepError>> + Send;
}

/// An event for a [`Reactor`], with what it may want to know.
#[derive(Debug, Clone)]
pub struct Reaction<E> {
    /// The event.
    pub event: Recorded<E>,
    /// The key of what the reactor does about this event, the same for all its attempts.
    pub key: Uuid,
    /// How old the event is, by the database's clock.
    pub age: Duration,
    /// How far its stream is by now.
    pub present: Version,
    app: App,
}

impl<E> Reaction<E> {
    /// The app that the reactor runs in.
    pub fn app(&self) -> &App {
        &self.app
    }

    /// The key of the `nth` thing that is done about the event, if there are several.
    pub fn nth_key(&self, nth: u32) -> Uuid {
        Uuid::new_v5(&self.key, &nth.to_be_bytes())
    }

    /// Lets the aggregate `id` handle `command`, once, however often the event is tried: the command's id comes from the key and
    /// the stream. So there is one command for each aggregate.
    ///
    /// # Errors
    /// As [`App::execute_with`].
    pub async fn execute<A: Aggregate>(&self, id: impl Into<Id>, command: A::Command) -> Result<Receipt, StepError> {
        let stream = StreamId::of(A::TYPE, id).map_err(StepError::business)?;
        let command_id = Uuid::new_v5(&self.key, stream.as_str().as_bytes());
        let options = Options::caused_by(&self.event).command_id(command_id);
        Ok(self.app.execute_with::<A>(stream.id(), command, options).await?)
    }
}

/// What there is to know of `reactor` to follow the log for it.
pub(crate) fn model<R: Reactor>(
    reactor: R,
    store: &Annals,
    contracts: &Arc<Contracts>,
    runtime: &Arc<Runtime>,
) -> Result<Model, InvalidInput> {
    runtime.breakers.add_all(R::TARGET.filter(|_| runtime.follow.has(R::NAME)))?;
    let (store, runtime, contracts, reactor) = (store.clone(), runtime.clone(), contracts.clone(), Arc::new(reactor));
    Ok(Model {
        name: R::NAME,
        kind: "reactor",
        version: 1,
        older: vec![],
        partitions: R::PARTITIONS,
        policy: R::FAILURES,
        categories: contracts.categories_of::<R::Event>(),
        skips: R::SKIPS,
        definition: format!("reactor {}", R::NAME),
        live: store.inner.name.read_model(R::NAME)?,
        begin: R::BEGIN,
        tables: "",
        indexes: "",
        follower: Box::new(move |_| {
            let reacting =
                Reacting { reactor: reactor.clone(), runtime: runtime.clone(), contracts: contracts.clone() };
            Arc::new(EffectFollower::new(store.clone(), Arc::new(reacting)))
        }),
    })
}

/// The follower of a reactor.
struct Reacting<R> {
    reactor: Arc<R>,
    runtime: Arc<Runtime>,
    contracts: Arc<Contracts>,
}

/// All keys of reactors come from the event's id under this one.
const NAMESPACE: Uuid = Uuid::from_u128(0x3d0c_52a1_9e0b_4c55_8a1f_77aa_6d1c_9b02);

impl<R: Reactor> Handle for Reacting<R> {
    const WANTS_HEADS: bool = true;

    fn handle(
        self: Arc<Self>,
        raw: Arc<Recorded<Payload>>,
        head: Option<Version>,
        time: Time,
    ) -> BoxFuture<'static, Result<Done, FollowError>> {
        Box::pin(async move {
            let event = self.contracts.decode::<R::Event>(&raw).map_err(|error| FollowError::from(Box::new(error)))?;
            let age = (self.runtime.now() - event.recorded_at).to_std().unwrap_or_default();
            if let Some(longest) = R::MAX_AGE.filter(|longest| age > *longest) {
                return Ok(Done::Skipped(format!("{}s old, and {}s is the most", age.as_secs(), longest.as_secs())));
            }
            let present = head.unwrap_or(event.version).max(event.version);
            if R::SKIP_IF_SUPERSEDED && present > event.version {
                let reason = format!("version {} of its stream, which is at {present} by now", event.version);
                return Ok(Done::Skipped(reason));
            }
            check_depth(&self.runtime.store, &raw).await?;
            let app = self.runtime.app().filter(|_| !self.runtime.stop.is_cancelled());
            let Some(app) = app else { return Err(FollowError::Waiting("the app is shut down".into())) };
            if time.is_over() {
                return Err(FollowError::Unfinished);
            }
            let key = Uuid::new_v5(&NAMESPACE, format!("{} {}", R::NAME, event.event_id).as_bytes());
            let admitted = match R::TARGET {
                None => None,
                Some(target) => {
                    let admitting = self.runtime.breakers.admit(&target, async { true });
                    let open = |_| FollowError::Waiting(format!("the circuit breaker before {} is open", target.name));
                    let admitted = timeout_at(time.begins_until, admitting).await;
                    admitted.map_err(|_| FollowError::Unfinished)?.map_err(open)?
                }
            };
            let reaction = Reaction { event, key, age, present, app };
            let Ok(result) = timeout(time.limit, self.reactor.react(reaction)).await else {
                let hung = FollowError::Hung(time.limit);
                if let Some(admitted) = admitted {
                    admitted.end(Some(&hung.to_string()));
                }
                return Err(hung);
            };
            if let Some(admitted) = admitted {
                let failure = result.as_ref().err().filter(|error| error.kind() != FailureKind::Business);
                admitted.end(failure.map(ToString::to_string).as_deref());
            }
            result.map(|()| Done::Handled).map_err(|error| match self.runtime.stop.is_cancelled() {
                // What it called for was refused here, and nobody else has said no: another process, or the next start, does it.
                true => FollowError::Waiting(format!("the app is shut down: {error}")),
                false => FollowError::Handler(error.into()),
            })
        })
    }
}
