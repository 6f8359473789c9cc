//! Timers, events that are waited for, versions that drain, and what a later build makes of parked instances.

use annals::{Event, ExpectedVersion, NewEvent, StreamId};
use schemars::JsonSchema;

use super::*;

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
enum RoomEvent {
    Booked { wait_ms: u64 },
    Paid { cents: i64 },
}

impl Event for RoomEvent {}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Room;

impl annals::Aggregate for Room {
    const TYPE: &'static str = "room";
    type Command = ();
    type Event = RoomEvent;
    type Error = std::convert::Infallible;

    fn handle(&self, (): &(), _: &annals::Context) -> Result<Vec<RoomEvent>, Self::Error> {
        Ok(vec![])
    }

    fn apply(&mut self, _: &RoomEvent) {}
}

/// Waits for the money for as long as the event says, and then a moment.
struct Stay<const VERSION: u32>;

impl<const VERSION: u32> Saga for Stay<VERSION> {
    const NAME: &'static str = "stay";
    const VERSION: u32 = VERSION;
    type Event = RoomEvent;
    type Input = u64;

    fn start(event: &Recorded<RoomEvent>) -> Option<(Id, u64)> {
        match event.event {
            RoomEvent::Booked { wait_ms } => Some((event.stream.id().into(), wait_ms)),
            _ => None,
        }
    }

    fn route(event: &Recorded<RoomEvent>) -> Option<Id> {
        Some(event.stream.id().into())
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        let steps =
            steps.step("hold", |_| async { Ok(()) }).undo(|_, ()| async { Ok(()) }).wait("money", |event| match event
                .event
            {
                RoomEvent::Paid { cents } => Some(cents),
                _ => None,
            });
        // An hour, but for those that are asked otherwise.
        let steps = steps.until(|facts| chrono::Utc::now() + Duration::from_millis(*facts.input));
        if VERSION == 1 {
            steps.sleep("rest", Duration::from_millis(300)).end()
        } else {
            steps.step("clean", |_| async { Ok(()) }).end()
        }
    }
}

async fn happen(app: &App, room: &str, events: &[RoomEvent]) {
    let events = events.iter().map(|event| NewEvent::of(event).unwrap()).collect();
    let stream = StreamId::of("room", room).unwrap();
    app.store().append(&stream, ExpectedVersion::Any, events).await.unwrap();
}

async fn hotel(url: &str) -> Builder {
    open(url).await.app().aggregate::<Room>()
}

async fn is(app: &App, room: &str, state: SagaState) -> SagaInstance {
    eventually(&format!("{room} is {state:?}"), || async {
        instance(app, room).await.is_some_and(|instance| instance.state == state)
    })
    .await;
    instance(app, room).await.unwrap()
}

const LATER: u64 = 3_600_000;

#[tokio::test]
async fn an_event_ends_a_wait_also_one_that_came_before_and_its_timer_is_gone() {
    let database = database().await;
    let app = hotel(database.url()).await.saga(Stay::<2>).start().await.unwrap();
    happen(&app, "1", &[RoomEvent::Booked { wait_ms: LATER }]).await;
    eventually("it waits", || async {
        instance(&app, "1").await.is_some_and(|room| room.step.as_deref() == Some("money") && room.owner.is_none())
    })
    .await;
    assert!(instance(&app, "1").await.unwrap().due_at.is_some());
    happen(&app, "1", &[RoomEvent::Paid { cents: 5 }]).await;
    let done = is(&app, "1", SagaState::Completed).await;
    assert_eq!((done.due_at, done.step), (None, None));

    // Before it waits; and before it has begun.
    happen(&app, "2", &[RoomEvent::Booked { wait_ms: LATER }, RoomEvent::Paid { cents: 5 }]).await;
    happen(&app, "3", &[RoomEvent::Paid { cents: 5 }]).await;
    is(&app, "3", SagaState::Early).await;
    happen(&app, "3", &[RoomEvent::Booked { wait_ms: LATER }]).await;
    is(&app, "2", SagaState::Completed).await;
    is(&app, "3", SagaState::Completed).await;
}

#[tokio::test]
async fn what_does_not_come_in_time_is_over_also_when_nobody_was_there_to_see_it() {
    let database = database().await;
    let app = hotel(database.url()).await.saga(Stay::<2>).start().await.unwrap();
    happen(&app, "1", &[RoomEvent::Booked { wait_ms: 200 }]).await;
    happen(&app, "2", &[RoomEvent::Booked { wait_ms: 1_000 }]).await;
    is(&app, "2", SagaState::Running).await;
    let undone = is(&app, "1", SagaState::Compensated).await;
    assert_eq!(undone.reason.as_deref(), Some("money did not succeed in its time"));
    app.shutdown().await;

    tokio::time::sleep(Duration::from_millis(1_000)).await;
    let app = hotel(database.url()).await.saga(Stay::<2>).start().await.unwrap();
    is(&app, "2", SagaState::Compensated).await;
}

#[tokio::test]
async fn what_came_in_time_counts_although_nobody_was_there_to_read_it() {
    let database = database().await;
    let app = hotel(database.url()).await.saga(Stay::<2>).start().await.unwrap();
    happen(&app, "1", &[RoomEvent::Booked { wait_ms: 2_000 }]).await;
    eventually("it waits", || async {
        instance(&app, "1").await.is_some_and(|room| room.step.as_deref() == Some("money") && room.owner.is_none())
    })
    .await;
    app.shutdown().await;
    // What stands before it takes its time to read.
    let other = hotel(database.url()).await.start().await.unwrap();
    for room in 0..300 {
        happen(&other, &format!("other-{room}"), &[RoomEvent::Paid { cents: 1 }]).await;
    }
    happen(&other, "1", &[RoomEvent::Paid { cents: 1 }]).await;
    let late = || async {
        instance(&other, "1").await.is_some_and(|room| room.due_at.is_some_and(|at| at < chrono::Utc::now()))
    };
    eventually("its time is over", late).await;

    let app = hotel(database.url()).await.saga(Stay::<2>).start().await.unwrap();
    is(&app, "1", SagaState::Completed).await;
    let history = app.sagas().history("stay", "1").await.unwrap();
    assert!(!history.iter().any(|recorded| matches!(recorded.event, SagaEvent::StepTimedOut { .. })), "{history:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_comes_as_its_wait_ends_is_in_time_or_too_late_and_nothing_between() {
    const ROOMS: u64 = 200;
    let database = database().await;
    let app = hotel(database.url()).await.saga(Stay::<2>).start().await.unwrap();
    futures::future::join_all((0..ROOMS).map(|room| {
        let app = &app;
        async move {
            let room_id = room.to_string();
            happen(app, &room_id, &[RoomEvent::Booked { wait_ms: 500 }]).await;
            tokio::time::sleep(Duration::from_millis(200 + 5 * room)).await;
            happen(app, &room_id, &[RoomEvent::Paid { cents: 1 }]).await;
        }
    }))
    .await;
    eventually("all end", || async {
        let counts = app.sagas().summary().await.unwrap()["stay"];
        counts.completed + counts.compensated == ROOMS
    })
    .await;
    let mut in_time = 0;
    for room in 0..ROOMS {
        let history = app.sagas().history("stay", room).await.unwrap();
        let is = |find: fn(&SagaEvent) -> bool| history.iter().filter(|recorded| find(&recorded.event)).count();
        let deadline = history.iter().find_map(|recorded| match &recorded.event {
            SagaEvent::StepStarted { step, deadline_at } if step == "money" => Some(*deadline_at),
            _ => None,
        });
        let stream = StreamId::of("room", room).unwrap();
        let events: Vec<Recorded<Payload>> =
            app.store().read_stream(&stream, ReadStream::default()).try_collect().await.unwrap();
        let was_in_time = deadline.is_none_or(|deadline| events[1].recorded_at <= deadline);
        let paid = is(|event| matches!(event, SagaEvent::StepCompleted { step, .. } if step == "money"));
        let over = is(|event| matches!(event, SagaEvent::StepTimedOut { .. }));
        let (completed, undone) = (
            is(|event| matches!(event, SagaEvent::SagaCompleted)),
            is(|event| matches!(event, SagaEvent::StepUndone { step } if step == "hold")),
        );
        assert!(paid + over == 1 && completed + undone == 1 && paid == completed, "{history:#?}");
        assert!(!was_in_time || paid == 1, "it was in time: {history:#?}");
        in_time += u64::from(was_in_time);
    }
    assert!(in_time < ROOMS, "none came late");
}

#[tokio::test]
async fn an_instance_ends_under_the_version_that_it_began_with() {
    let database = database().await;
    let app = hotel(database.url()).await.saga(Stay::<1>).start().await.unwrap();
    happen(&app, "old", &[RoomEvent::Booked { wait_ms: LATER }]).await;
    is(&app, "old", SagaState::Running).await;
    app.shutdown().await;

    // Without its version nobody runs it, and that is to be seen.
    let app = hotel(database.url()).await.saga(Stay::<2>).start().await.unwrap();
    happen(&app, "new", &[RoomEvent::Booked { wait_ms: LATER }, RoomEvent::Paid { cents: 1 }]).await;
    is(&app, "new", SagaState::Completed).await;
    let waits = instance(&app, "old").await.unwrap();
    assert_eq!((waits.definition, waits.is_served), (1, false));
    app.shutdown().await;

    let app = hotel(database.url()).await.saga(Stay::<1>).saga(Stay::<2>).start().await.unwrap();
    eventually("its version is there", || async { instance(&app, "old").await.is_some_and(|it| it.is_served) }).await;
    happen(&app, "old", &[RoomEvent::Paid { cents: 1 }]).await;
    is(&app, "old", SagaState::Completed).await;
    let history = app.sagas().history("stay", "old").await.unwrap();
    let slept = |recorded: &Recorded<SagaEvent>| matches!(&recorded.event, SagaEvent::StepStarted { step, .. } if step == "rest");
    assert!(history.iter().any(slept));
    let again = hotel(database.url()).await.saga(Stay::<2>).saga(Stay::<2>);
    let refused = crate::kit::start_error(again).await.1;
    assert!(refused.contains("version 2 of saga stay is registered twice"), "{refused}");
}

/// The same saga under the same version, as other builds have it.
struct Changed<const BUILD: u32>;

impl<const BUILD: u32> Saga for Changed<BUILD> {
    const NAME: &'static str = "stay";
    type Event = RoomEvent;
    type Input = serde_json::Value;

    fn start(event: &Recorded<RoomEvent>) -> Option<(Id, serde_json::Value)> {
        Stay::<1>::start(event).map(|(id, input)| (id, input.into()))
    }

    fn route(event: &Recorded<RoomEvent>) -> Option<Id> {
        Stay::<1>::route(event)
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        let money = |steps: Steps<Self>| {
            steps.wait("money", |event| match event.event {
                RoomEvent::Paid { cents } => Some(cents),
                _ => None,
            })
        };
        match BUILD {
            // A step more before where they are, and one behind.
            0 => {
                let steps = steps.step("hold", |_| async { Ok(()) }).step("greet", |_| async { Ok(()) });
                money(steps.end()).step("bill", |_| async { Ok(()) }).end()
            }
            // The step that they are at is gone.
            _ => steps.step("hold", |_| async { Ok(()) }).step("bill", |_| async { Ok(()) }).end(),
        }
    }
}

#[tokio::test]
async fn a_thousand_parked_instances_go_on_under_changed_code() {
    const ROOMS: usize = 1_000;
    let database = database().await;
    let app = hotel(database.url()).await.saga(Stay::<1>).start().await.unwrap();
    futures::future::join_all((0..ROOMS).map(|room| {
        let app = &app;
        async move { happen(app, &room.to_string(), &[RoomEvent::Booked { wait_ms: LATER }]).await }
    }))
    .await;
    let at_money = || async {
        let filter = SagaFilter { step: Some("money".into()), ..SagaFilter::default() };
        app.sagas().list(&filter, 10_000).await.unwrap().len() == ROOMS
    };
    eventually("all wait", at_money).await;
    app.shutdown().await;

    // A build without the step: each is stuck as soon as something comes, with a reason; nothing is guessed.
    let app = hotel(database.url()).await.saga(Changed::<1>).start().await.unwrap();
    let sagas = app.sagas();
    for room in 0..3 {
        sagas.cancel("stay", room, &by()).await.unwrap();
        let ended = is(&app, &room.to_string(), SagaState::Stuck).await;
        let reason = ended.reason.unwrap();
        assert!(reason.starts_with("step money, which it is at, is not in version 1 of the saga"), "{reason}");
    }
    app.shutdown().await;

    let app = hotel(database.url()).await.saga(Changed::<0>).start().await.unwrap();
    // Those that were called off go on, too, now that the step is back.
    for room in 0..3 {
        app.sagas().retry("stay", room, &by()).await.unwrap();
    }
    for room in 0..ROOMS {
        happen(&app, &room.to_string(), &[RoomEvent::Paid { cents: 1 }]).await;
    }
    eventually("all end", || async {
        let counts = app.sagas().summary().await.unwrap()["stay"];
        (counts.completed, counts.compensated) == (ROOMS as u64 - 3, 3)
    })
    .await;
    let history = app.sagas().history("stay", "500").await.unwrap();
    let began =
        |name: &str| history.iter().any(|it| matches!(&it.event, SagaEvent::StepStarted { step, .. } if step == name));
    assert!(began("bill") && !began("greet"));
}

/// The same saga, begun with something else.
struct Other;

impl Saga for Other {
    const NAME: &'static str = "stay";
    type Event = RoomEvent;
    type Input = String;

    fn start(_: &Recorded<RoomEvent>) -> Option<(Id, String)> {
        None
    }

    fn route(event: &Recorded<RoomEvent>) -> Option<Id> {
        Stay::<1>::route(event)
    }

    fn steps(steps: Steps<Self>) -> Steps<Self> {
        steps
            .step("hold", |_| async { Ok(()) })
            .wait("money", |event| match event.event {
                RoomEvent::Paid { cents } => Some(cents),
                _ => None,
            })
            .step("clean", |_| async { Ok(()) })
            .retry(RetryPolicy { attempts: 2, first_delay: Duration::from_millis(10), ..RetryPolicy::STEP })
            .end()
    }
}

#[tokio::test]
async fn an_instance_that_a_build_cannot_read_is_stuck_and_goes_on_with_one_that_can() {
    let database = database().await;
    let app = hotel(database.url()).await.saga(Stay::<1>).start().await.unwrap();
    happen(&app, "1", &[RoomEvent::Booked { wait_ms: LATER }]).await;
    is(&app, "1", SagaState::Running).await;
    eventually("it waits", || async { instance(&app, "1").await.unwrap().step.as_deref() == Some("money") }).await;
    app.shutdown().await;

    let app = hotel(database.url()).await.saga(Other).start().await.unwrap();
    happen(&app, "1", &[RoomEvent::Paid { cents: 1 }]).await;
    let stuck = is(&app, "1", SagaState::Stuck).await;
    assert!(stuck.reason.unwrap().contains("what stay was started with cannot be read by this build"));
    app.shutdown().await;

    let app = hotel(database.url()).await.saga(Changed::<0>).start().await.unwrap();
    app.sagas().skip("stay", "1", "clean", &by()).await.unwrap();
    is(&app, "1", SagaState::Completed).await;
}

#[tokio::test]
async fn a_paused_saga_begins_and_does_nothing_until_it_is_resumed() {
    let database = database().await;
    let app = hotel(database.url()).await.saga(Stay::<2>).start().await.unwrap();
    happen(&app, "1", &[RoomEvent::Booked { wait_ms: 300 }]).await;
    is(&app, "1", SagaState::Running).await;
    let followers = app.store().followers();
    followers.pause("stay", &by()).await.unwrap();
    eventually("it is paused", || async { app.followers()[0].state == annals::FollowerState::Paused }).await;
    happen(&app, "2", &[RoomEvent::Booked { wait_ms: LATER }]).await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(instance(&app, "1").await.unwrap().state, SagaState::Running);
    assert!(instance(&app, "2").await.is_none());

    followers.resume("stay", &by()).await.unwrap();
    is(&app, "1", SagaState::Compensated).await;
    is(&app, "2", SagaState::Running).await;
}
