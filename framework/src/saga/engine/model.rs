//! The state machine beside a model of the world: whatever happens, in whatever order.

use std::{collections::BTreeSet, time::Duration};

use chrono::{DateTime, Utc};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    Failure, Input, Phase, Progress, State, What, decide, effects,
    tests::{MINUTE, Trip},
    wakes_at,
};
use crate::{
    FailureKind, SagaEvent, Steps,
    saga::state::{StepState, later},
};

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
    Unreadable,
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
        1 => Just(Chance::Unreadable),
    ]
}

/// The world outside: under which of its keys each step really happened there, whatever the saga was told. It answers truly, or not.
#[derive(Debug, Default)]
struct World {
    happened: BTreeSet<(String, u32)>,
}

impl World {
    fn has(&self, step: &str, key: u32) -> bool {
        self.happened.contains(&(step.to_owned(), key))
    }

    fn does(&mut self, step: &str, key: u32) {
        self.happened.insert((step.to_owned(), key));
    }

    /// How often `step` has happened and is not undone.
    fn times(&self, step: &str) -> usize {
        self.happened.iter().filter(|(own, _)| own == step).count()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_it_ends_goes_on_or_is_stuck(chances in prop::collection::vec((chance(), any::<prop::sample::Index>()), 1..60)) {
        let plan = Steps::<Trip>::of_saga().plan;
        let mut now = DateTime::UNIX_EPOCH;
        let start = Input::Start { definition: 1, input: json!(3) };
        let (begun, mut state) = decide(&plan, &State::default(), start, now).unwrap();
        let mut history: Vec<(SagaEvent, DateTime<Utc>)> = begun.into_iter().map(|event| (event, now)).collect();
        let (mut skipped, mut world) = (false, World::default());
        let names: Vec<&str> = plan.steps().map(|step| step.name).collect();
        for (chance, index) in chances {
            let doing = effects(&plan, &state, now);
            let at = (!doing.is_empty()).then(|| index.get(&doing).clone());
            let step = at.as_ref().map(|at| at.step.to_owned());
            let key = |name: &str| state.step(name).map_or(0, |step| step.dead_keys);
            let output = |name: &str| match name { "hotel" => json!(3), "flight" => json!("F1"), "payment" => json!(500), _ => Value::Null };
            let coin = index.index(2) == 0;
            let input = match (chance.clone(), at.map(|at| at.what), step) {
                (Chance::Succeeds, Some(What::Undo), Some(step)) => {
                    world.happened.retain(|(own, _)| *own != step);
                    Input::Undone { step }
                }
                (Chance::Succeeds, Some(What::Run), Some(step)) => {
                    world.does(&step, key(&step));
                    Input::Succeeded { key: key(&step), output: output(&step), step }
                }
                (Chance::Succeeds, Some(What::Ask), Some(step)) if world.has(&step, key(&step)) => {
                    Input::Succeeded { key: key(&step), output: output(&step), step }
                }
                (Chance::Fails(failure), Some(What::Undo), Some(step)) => Input::UndoFailed { step, failure },
                (Chance::Fails(failure), Some(What::Ask), Some(step)) => Input::NotAnswered { key: key(&step), step, failure },
                // Whoever has done it does not say no when it is repeated under the same key.
                (Chance::Fails(failure), Some(What::Run), Some(step))
                    if failure.kind != FailureKind::Business || !world.has(&step, key(&step)) =>
                {
                    if failure.kind == FailureKind::Unknown && coin {
                        world.does(&step, key(&step));
                    }
                    Input::Failed { key: key(&step), step, failure }
                }
                (Chance::NotDone, Some(What::Ask), Some(step)) if !world.has(&step, key(&step)) => {
                    Input::NotDone { key: key(&step), step }
                }
                (Chance::NotSeen, Some(What::Ask), Some(step)) => Input::NotSeen { key: key(&step), step },
                (Chance::Late(nth), ..) if names[nth] != "payment" && names[nth] != "pause" => {
                    let open = |step: &StepState| step.is_open() || matches!(step.progress, Progress::Failed | Progress::Skipped);
                    if state.step(names[nth]).is_some_and(open) {
                        world.does(names[nth], key(names[nth]));
                    }
                    Input::Succeeded { key: key(names[nth]), step: names[nth].into(), output: output(names[nth]) }
                }
                (Chance::Paid, ..) => {
                    if !state.has_received(crate::Position::new(7)) {
                        world.does("payment", 0);
                    }
                    Input::Event { position: crate::Position::new(7), outputs: vec![("payment".into(), Ok(json!(500)))] }
                }
                (Chance::Declined, ..) => Input::Event {
                    position: crate::Position::new(8), outputs: vec![("payment".into(), Err("no cover".into()))],
                },
                (Chance::Denied, ..) => {
                    let doubted = |step: &&StepState| step.unknown > 0 && !world.has(&step.name, step.dead_keys);
                    let step = state.steps.iter().find(doubted).map(|step| step.name.clone()).unwrap_or_default();
                    Input::Denied { step, reason: "they know nothing of it".into(), is_run: false }
                }
                (Chance::NeverTried, Some(What::Run), Some(step)) => Input::NeverTried { step },
                (Chance::Passes(seconds), ..) => { now = later(now, Duration::from_secs(seconds)); Input::Tick }
                (Chance::Interrupted | Chance::Unreadable, ..) => {
                    // What was under way may have got through.
                    let begun = |step: &&StepState| coin && step.may_be_under_way(now) && !["payment", "pause"].contains(&&*step.name);
                    state.steps.iter().filter(begun).for_each(|step| world.does(&step.name, step.dead_keys));
                    match matches!(chance, Chance::Interrupted) {
                        true => Input::Interrupted,
                        false => Input::Broken { step: None, reason: "a dream".into(), interrupted: true },
                    }
                }
                (Chance::Cancelled, ..) => Input::Cancel { reason: "no".into() },
                (Chance::Retried, ..) => Input::Retry { reason: "again".into() },
                (Chance::Skipped, _, Some(step)) => Input::Skip { step, reason: "by hand".into(), is_run: false },
                _ => Input::Tick,
            };
            let is_skip = matches!(input, Input::Skip { .. });
            if let Ok((events, decided)) = decide(&plan, &state, input, now) {
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
            // Nothing happens twice, and what ended undone has nothing left that happened; an operator may have said otherwise.
            prop_assert!(names.iter().all(|step| world.times(step) <= 1), "{world:?}");
            if state.phase == Phase::Compensated && !skipped {
                prop_assert!(["hotel", "flight", "payment"].iter().all(|step| world.times(step) == 0), "{world:?} {history:#?}");
                prop_assert!(state.steps.iter().all(|step| step.unknown == 0), "{:?}", state);
            }
            if state.phase == Phase::Completed && !skipped {
                prop_assert!(["hotel", "flight", "payment"].iter().all(|step| world.times(step) == 1), "{world:?} {history:#?}");
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
