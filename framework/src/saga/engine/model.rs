//! The state machine beside a model of the world: whatever happens, in whatever order.

use std::time::Duration;

use chrono::{DateTime, Utc};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    Failure, Input, Phase, Progress, State, What, decide, effects,
    tests::{MINUTE, Trip},
    wakes_at,
};
use crate::{FailureKind, SagaEvent, Steps, saga::state::later};

fn failure() -> impl Strategy<Value = Failure> {
    let kind = prop_oneof![Just(FailureKind::Business), Just(FailureKind::Transient), Just(FailureKind::Unknown)];
    kind.prop_map(|kind| Failure { kind, error: "it fails".into(), retry_after: None, is_final: false })
}

/// What may happen to a step that is under way, or to none.
#[derive(Debug, Clone)]
enum Chance {
    Succeeds,
    Fails(Failure),
    NotDone,
    NotSeen,
    Late(usize),
    Paid,
    Passes(u64),
    Interrupted,
    Cancelled,
    Retried,
    Skipped,
    Denied,
    Declined,
    NeverTried,
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        8 => Just(Chance::Succeeds),
        4 => failure().prop_map(Chance::Fails),
        1 => Just(Chance::NotDone),
        1 => Just(Chance::NotSeen),
        1 => (0..6_usize).prop_map(Chance::Late),
        2 => Just(Chance::Paid),
        3 => (0..900_u64).prop_map(Chance::Passes),
        1 => Just(Chance::Interrupted),
        1 => Just(Chance::Cancelled),
        1 => Just(Chance::Retried),
        1 => Just(Chance::Skipped),
        1 => Just(Chance::Denied),
        1 => Just(Chance::Declined),
        2 => Just(Chance::NeverTried),
    ]
}

/// The world outside: what each step really did there.
#[derive(Default)]
struct World {
    hotel: bool,
    flight: bool,
    payment: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_it_ends_goes_on_or_is_stuck(chances in prop::collection::vec((chance(), any::<prop::sample::Index>()), 1..60)) {
        let plan = Steps::<Trip>::of_saga().plan;
        let mut now = DateTime::UNIX_EPOCH;
        let mut history: Vec<(SagaEvent, DateTime<Utc>)> = vec![];
        let mut state = State::default();
        let mut skipped = false;
        let mut inputs = vec![Input::Start { definition: 1, input: json!(3) }];
        let names: Vec<&str> = plan.steps().map(|step| step.name).collect();
        for (chance, index) in chances {
            let doing = effects(&plan, &state, now);
            let at = (!doing.is_empty()).then(|| index.get(&doing).clone());
            let step = at.as_ref().map(|at| at.step.to_owned());
            let key = |name: &str| state.step(name).map_or(0, |step| step.dead_keys);
            let output = |name: &str| match name { "hotel" => json!(3), "flight" => json!("F1"), "payment" => json!(500), _ => Value::Null };
            let input = match (chance, at.map(|at| at.what), step) {
                (Chance::Succeeds, Some(What::Undo), Some(step)) => Input::Undone { step },
                (Chance::Succeeds, Some(_), Some(step)) => Input::Succeeded { key: key(&step), output: output(&step), step },
                (Chance::Fails(failure), Some(What::Undo), Some(step)) => Input::UndoFailed { step, failure },
                (Chance::Fails(failure), Some(What::Ask), Some(step)) => Input::NotAnswered { key: key(&step), step, failure },
                (Chance::Fails(failure), Some(What::Run), Some(step)) => Input::Failed { key: key(&step), step, failure },
                (Chance::NotDone, Some(What::Ask), Some(step)) => Input::NotDone { key: key(&step), step },
                (Chance::NotSeen, Some(What::Ask), Some(step)) => Input::NotSeen { key: key(&step), step },
                (Chance::Late(nth), ..) if names[nth] != "payment" && names[nth] != "pause" =>
                    Input::Succeeded { key: key(names[nth]), step: names[nth].into(), output: output(names[nth]) },
                (Chance::Paid, ..) => Input::Event {
                    position: crate::Position::new(7), outputs: vec![("payment".into(), Ok(json!(500)))],
                },
                (Chance::Declined, ..) => Input::Event {
                    position: crate::Position::new(8), outputs: vec![("payment".into(), Err("no cover".into()))],
                },
                (Chance::Denied, ..) => Input::Denied {
                    step: state.steps.iter().find(|step| step.unknown > 0).map(|step| step.name.clone()).unwrap_or_default(),
                    reason: "they know nothing of it".into(),
                    is_run: false,
                },
                (Chance::NeverTried, Some(What::Run), Some(step)) => Input::NeverTried { step },
                (Chance::Passes(seconds), ..) => { now = later(now, Duration::from_secs(seconds)); Input::Tick }
                (Chance::Interrupted, ..) => Input::Interrupted,
                (Chance::Cancelled, ..) => Input::Cancel { reason: "no".into() },
                (Chance::Retried, ..) => Input::Retry { reason: "again".into() },
                (Chance::Skipped, _, Some(step)) => Input::Skip { step, reason: "by hand".into(), is_run: false },
                _ => Input::Tick,
            };
            inputs.push(input);
            for input in inputs.drain(..) {
                let is_skip = matches!(input, Input::Skip { .. });
                let Ok((events, decided)) = decide(&plan, &state, input, now) else { continue };
                skipped |= is_skip;
                for event in events {
                    let was = state.clone();
                    state.apply(&event, now);
                    if let SagaEvent::UndoStarted { step } = &event {
                        prop_assert!(!was.steps.iter().any(|step| step.is_open()), "undone while something is open: {was:?}");
                        let done = was.steps.iter().filter(|step| step.progress == Progress::Completed);
                        let undoable = done.filter(|step| plan.step(&step.name).is_some_and(|planned| planned.has_undo));
                        let latest = undoable.max_by_key(|step| step.completed);
                        prop_assert_eq!(latest.map(|step| &step.name), Some(step));
                    }
                    history.push((event, now));
                }
                prop_assert_eq!(&state, &decided);
            }
            let folded = history.iter().fold(State::default(), |mut state, (event, at)| { state.apply(event, *at); state });
            prop_assert_eq!(&folded, &state);

            // Every instance ends, has something to do, will have by time, waits for an event that has a deadline, or is stuck.
            let goes_on = !effects(&plan, &state, now).is_empty() || wakes_at(&plan, &state, now).is_some();
            let is_stuck = matches!(state.phase, Phase::Stuck { .. });
            prop_assert!(state.has_ended() || is_stuck || goes_on, "{:?}", state);
            // What ended undone has nothing left that happened; an operator may have said otherwise.
            if state.phase == Phase::Compensated && !skipped {
                let mut world = World::default();
                for (event, _) in &history {
                    let (step, is_done) = match event {
                        SagaEvent::StepCompleted { step, .. } => (step, true),
                        SagaEvent::StepUndone { step } => (step, false),
                        _ => continue,
                    };
                    match &**step {
                        "hotel" => world.hotel = is_done,
                        "flight" => world.flight = is_done,
                        "payment" => world.payment = is_done,
                        _ => {}
                    }
                }
                prop_assert!(!world.hotel && !world.flight && !world.payment);
                prop_assert!(state.steps.iter().all(|step| step.unknown == 0), "{:?}", state);
            }
        }
    }

    /// 10,000 times in all: whichever comes first, the step is done and undone, or done.
    #[test]
    fn a_time_out_and_a_success_in_the_same_instant_are_decided_by_their_order(times in prop::collection::vec(any::<bool>(), 40)) {
        let plan = Steps::<Trip>::of_saga().plan;
        for success_first in times {
            let mut now = DateTime::UNIX_EPOCH;
            let tell = |state: &State, input, now| decide(&plan, state, input, now).map(|(_, state)| state);
            let mut state = tell(&State::default(), Input::Start { definition: 1, input: json!(3) }, now).unwrap();
            state = tell(&state, Input::Succeeded { key: 0, step: "hotel".into(), output: json!(3) }, now).unwrap();
            now = later(now, MINUTE);
            let success = Input::Succeeded { key: 0, step: "flight".into(), output: json!("F1") };
            let inputs = if success_first { [success, Input::Tick] } else { [Input::Tick, success] };
            for input in inputs {
                state = tell(&state, input, now).unwrap();
            }
            let doing: Vec<(&str, What)> = effects(&plan, &state, now).iter().map(|effect| (effect.step, effect.what)).collect();
            if success_first {
                prop_assert_eq!(&state.phase, &Phase::Forward);
                prop_assert!(doing.is_empty());
            } else {
                prop_assert_eq!(doing, vec![("flight", What::Undo)]);
            }
        }
    }
}
