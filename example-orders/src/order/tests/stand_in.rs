//! Stands in for `annals::testing::given` until it has landed.

use annals::{Aggregate, Context};

pub(super) struct Given<A>(A);
pub(super) struct Outcome<A: Aggregate>(Result<Vec<A::Event>, A::Error>);

pub(super) fn given<A: Aggregate>(history: impl IntoIterator<Item = A::Event>) -> Given<A> {
    let mut state = A::default();
    history.into_iter().for_each(|event| state.apply(&event));
    Given(state)
}

impl<A: Aggregate> Given<A> {
    pub(super) fn when(self, command: A::Command) -> Outcome<A> {
        let now = chrono::DateTime::UNIX_EPOCH;
        let context =
            Context { now, command_id: None, correlation_id: Default::default(), causation_id: None, actor: None };
        Outcome(self.0.handle(&command, &context))
    }
}

impl<A: Aggregate<Event: PartialEq + std::fmt::Debug, Error: PartialEq>> Outcome<A> {
    pub(super) fn then(self, expected: impl IntoIterator<Item = A::Event>) {
        assert_eq!(self.0.unwrap(), expected.into_iter().collect::<Vec<_>>());
    }

    pub(super) fn then_rejected(self, expected: A::Error) {
        assert_eq!(self.0.unwrap_err(), expected);
    }
}
