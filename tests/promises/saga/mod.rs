//! P5, P7: every saga ends completed, compensated, or visibly stuck; what it does outside, it does under one key.

mod outside;
mod processes;
mod steps;
mod time;
mod transfer;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use annals::{
    App, Attention, Builder, By, Id, Payload, ReadStream, Recorded, RetryPolicy, Saga, SagaEvent, SagaFilter,
    SagaInstance, SagaState, StepError, Steps, StreamId,
    testing::{TestDatabase, database},
};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    kit::{Account, AccountCommand, LONG, eventually, open},
    shop::{Order, OrderCommand, OrderEvent},
};

/// How the outside world answers next, for a step of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// Nothing happens, and it says why.
    Declined,
    Down,
    /// It happens, and the answer is lost.
    Lost,
    /// Nothing happens, and no answer comes.
    Silent,
    Panics,
    Hangs,
}

/// The world outside: it does a thing once for a key, as a payment gateway does.
#[derive(Default)]
pub(crate) struct World {
    /// What was done, by key: what, and for which order.
    done: Mutex<HashMap<Uuid, (String, String)>>,
    answers: Mutex<HashMap<(String, String), Vec<Answer>>>,
    /// What was asked of it, in order: what, for which order, under which key.
    calls: Mutex<Vec<(String, String, Uuid)>>,
}

impl World {
    /// How it answers the next calls of `what` for `order`; after that, all is done.
    pub(crate) fn answers(&self, what: &str, order: &str, answers: &[Answer]) {
        self.answers.lock().unwrap().insert((what.into(), order.into()), answers.to_vec());
    }

    pub(crate) async fn call(&self, what: &str, order: &str, key: Uuid) -> Result<String, StepError> {
        self.calls.lock().unwrap().push((what.into(), order.into(), key));
        let answer = {
            let mut answers = self.answers.lock().unwrap();
            let answers = answers.entry((what.into(), order.into())).or_default();
            if answers.is_empty() { Answer::Done } else { answers.remove(0) }
        };
        let happen = || {
            self.done.lock().unwrap().entry(key).or_insert_with(|| (what.into(), order.into()));
            Ok(format!("{what} of {order}"))
        };
        match answer {
            Answer::Done => happen(),
            Answer::Declined => Err(StepError::business("declined")),
            Answer::Down => Err(StepError::transient("down")),
            Answer::Lost => happen().and(Err(StepError::unknown("no answer"))),
            Answer::Silent => Err(StepError::unknown("no answer")),
            Answer::Panics => panic!("the step panics"),
            Answer::Hangs => std::future::pending().await,
        }
    }

    /// How often each thing was done for `order`.
    pub(crate) fn done(&self, order: &str) -> BTreeMap<String, usize> {
        let done = self.done.lock().unwrap();
        let mut counts = BTreeMap::new();
        done.values().filter(|(_, of)| of == order).for_each(|(what, _)| *counts.entry(what.clone()).or_default() += 1);
        counts
    }

    /// Under which keys a thing was asked for, in order.
    pub(crate) fn keys(&self, what: &str, order: &str) -> Vec<Uuid> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| (&*call.0, &*call.1) == (what, order)).map(|call| call.2).collect()
    }

    /// How often a thing was asked for, and under how many keys.
    pub(crate) fn calls(&self, what: &str, order: &str) -> (usize, usize) {
        let keys = self.keys(what, order);
        (keys.len(), keys.iter().collect::<BTreeSet<_>>().len())
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ToPay {
    pub(crate) order: String,
    pub(crate) cents: i64,
}

pub(crate) const QUICK: RetryPolicy =
    RetryPolicy { attempts: 4, first_delay: Duration::from_millis(20), longest_delay: Duration::from_millis(200) };

/// Reserves money on an account, pays and ships outside, confirms.
pub(crate) struct Fulfilment(pub(crate) Arc<World>);

impl Saga for Fulfilment {
    const NAME: &'static str = "fulfilment";
    type Event = OrderEvent;
    type Input = ToPay;

    fn start(event: &Recorded<OrderEvent>) -> Option<(Id, ToPay)> {
        match &event.event {
            OrderEvent::Placed { cents, .. } => {
                let order = event.stream.id().to_owned();
                Some(((&order).into(), ToPay { order, cents: *cents }))
            }
            _ => None,
        }
    }

    fn cancel(event: &Recorded<OrderEvent>) -> Option<(Id, String)> {
        match &event.event {
            OrderEvent::Cancelled { reason, .. } => Some((event.stream.id().into(), reason.clone())),
            _ => None,
        }
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps
            .command::<Account>("reserve", |cx| Ok(("stock".into(), AccountCommand::Withdraw(cx.input.cents))))
            .undo_command::<Account>(|cx, ()| Ok(("stock".into(), AccountCommand::Deposit(cx.input.cents))))
            .retry(QUICK)
            .step("pay", |cx| async move { cx.saga.0.call("pay", &cx.input.order, cx.key).await })
            .undo(|cx, paid: String| async move {
                assert_eq!(paid, format!("pay of {}", cx.input.order));
                cx.saga.0.call("refund", &cx.input.order, cx.key).await.map(drop)
            })
            .retry(QUICK)
            .undo_retry(QUICK)
            .attempt_timeout(Duration::from_millis(500))
            .step("ship", |cx| async move {
                cx.output::<String>("pay")?;
                cx.saga.0.call("ship", &cx.input.order, cx.key).await
            })
            .undo(|cx, _| async move { cx.saga.0.call("return", &cx.input.order, cx.key).await.map(drop) })
            .retry(QUICK)
            .undo_retry(QUICK)
            .command::<Order>("confirm", |cx| Ok((cx.id.clone(), OrderCommand::Confirm)))
            .retry(QUICK)
    }
}

pub(crate) struct Shop {
    pub(crate) app: App,
    pub(crate) world: Arc<World>,
    /// Lives as long as the app.
    _database: TestDatabase,
}

pub(crate) async fn builder(url: &str, world: &Arc<World>) -> Builder {
    open(url).await.app().aggregate::<Order>().aggregate::<Account>().saga(Fulfilment(world.clone()))
}

impl Shop {
    pub(crate) async fn open() -> Self {
        Self::told(|_| {}).await
    }

    /// One in which `tell` is told of what is stuck.
    pub(crate) async fn told(tell: impl Fn(Attention) + Send + Sync + 'static) -> Self {
        let database = database().await;
        let world = Arc::new(World::default());
        let app = builder(database.url(), &world).await.on_attention(tell).start().await.unwrap();
        app.execute::<Account>("stock", AccountCommand::Deposit(1_000_000)).await.unwrap();
        Self { app, world, _database: database }
    }

    pub(crate) async fn place(&self, order: &str) {
        self.app.execute::<Order>(order, OrderCommand::Place { customer: "ada".into(), cents: 100 }).await.unwrap();
    }

    /// Waits until the instance is in `state`.
    pub(crate) async fn is(&self, order: &str, state: SagaState) -> SagaInstance {
        let found = Mutex::new(None);
        eventually(&format!("{order} is {state:?}"), || async {
            let instance = instance(&self.app, order).await;
            let is_so = instance.as_ref().is_some_and(|instance| instance.state == state);
            *found.lock().unwrap() = instance;
            is_so
        })
        .await;
        found.into_inner().unwrap().unwrap()
    }

    pub(crate) async fn history(&self, order: &str) -> Vec<SagaEvent> {
        let history = self.app.sagas().history("fulfilment", order).await.unwrap();
        history.into_iter().map(|recorded| recorded.event).collect()
    }

    /// What stands in a stream.
    pub(crate) async fn events(&self, stream: &str) -> Vec<Recorded<Payload>> {
        let (category, id) = stream.split_once('-').unwrap();
        let stream = StreamId::of(category, id).unwrap();
        self.app.store().read_stream(&stream, ReadStream::default()).try_collect().await.unwrap()
    }

    pub(crate) async fn stock(&self) -> i64 {
        crate::kit::balance(&self.app, "stock").await
    }
}

pub(crate) use self::processes::process;

/// The instance of exactly this id.
pub(crate) async fn instance(app: &App, id: &str) -> Option<SagaInstance> {
    let filter = SagaFilter { id: Some(id.into()), ..SagaFilter::default() };
    app.sagas().list(&filter, 10_000).await.unwrap().into_iter().find(|instance| &*instance.id == id)
}

pub(crate) fn by() -> By {
    By::new("ops", "a test")
}
