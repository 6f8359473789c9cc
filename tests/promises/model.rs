//! P2, P3: whatever is appended and read in whatever order, the store is the plain list that one would expect.

use annals::{
    Annals, Append, ExpectedVersion, Metadata, NewEvent, ReadLog, ReadStream, StoreError, Version, testing::database,
};
use futures::TryStreamExt;
use proptest::{
    prelude::*,
    test_runner::{Config as Cases, TestCaseError, TestRunner},
};

use crate::append::stream;

/// One thing that is done to the store and to the model.
#[derive(Debug, Clone)]
enum Step {
    /// Appends to one stream or to several at once: (stream, what is expected, how many events).
    Append(Vec<(usize, Belief, usize)>),
    /// The same inside a transaction that also commits, or not.
    AppendIn(Vec<(usize, Belief, usize)>, bool),
    /// Reads a stream between two versions, in pages of a size.
    Read { stream: usize, after: usize, up_to: Option<usize>, backwards: bool, page: usize },
    /// Reads the log behind the nth event of this run, of some types, in pages of a size.
    Log { after: usize, types: Vec<usize>, page: usize },
}

#[derive(Debug, Clone, Copy)]
enum Belief {
    Right,
    Off(i64),
    NoStream,
    Any,
}

const TYPES: [&str; 3] = ["Placed", "Paid", "Sent"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let belief = prop_oneof![
        5 => Just(Belief::Right),
        1 => (-3..=3_i64).prop_map(Belief::Off),
        1 => Just(Belief::NoStream),
        2 => Just(Belief::Any),
    ];
    let one = (0..4_usize, belief, 0..5_usize);
    // No stream twice: that is refused before anything else.
    let several = prop::collection::vec(one, 1..4).prop_map(|mut appends| {
        let mut seen = [false; 4];
        appends.retain(|(stream, ..)| !std::mem::replace(&mut seen[*stream], true));
        appends
    });
    let step = prop_oneof![
        5 => several.clone().prop_map(Step::Append),
        2 => (several, any::<bool>()).prop_map(|(appends, commits)| Step::AppendIn(appends, commits)),
        2 => (0..4_usize, 0..12_usize, prop::option::of(0..12_usize), any::<bool>(), 1..9_usize)
            .prop_map(|(stream, after, up_to, backwards, page)| Step::Read { stream, after, up_to, backwards, page }),
        1 => (0..20_usize, prop::collection::vec(0..3_usize, 0..3), 1..9_usize)
            .prop_map(|(after, types, page)| Step::Log { after, types, page }),
    ];
    prop::collection::vec(step, 1..30)
}

/// The store as a plain list: (stream, version, type, payload), in the order of the log.
#[derive(Debug, Default, Clone)]
struct Model {
    log: Vec<(usize, i64, &'static str, String)>,
}

impl Model {
    fn version(&self, stream: usize) -> i64 {
        self.log.iter().filter(|event| event.0 == stream).count() as i64
    }

    fn expected(&self, stream: usize, belief: Belief) -> ExpectedVersion {
        match belief {
            Belief::Right => ExpectedVersion::Exact(Version::new(self.version(stream))),
            Belief::Off(by) => ExpectedVersion::Exact(Version::new(self.version(stream) + by)),
            Belief::NoStream => ExpectedVersion::NoStream,
            Belief::Any => ExpectedVersion::Any,
        }
    }

    /// Whether the stream is as expected.
    fn accepts(&self, append: &(usize, Belief, usize)) -> bool {
        match self.expected(append.0, append.1) {
            ExpectedVersion::Exact(version) => version.get() == self.version(append.0),
            ExpectedVersion::NoStream => self.version(append.0) == 0,
            ExpectedVersion::Any => true,
        }
    }
}

/// One run on streams of its own, which `run` tells apart from those of the other runs.
struct Run<'s> {
    store: &'s Annals,
    run: usize,
    model: Model,
}

impl Run<'_> {
    fn stream(&self, nth: usize) -> annals::StreamId {
        stream(format!("run{}x{nth}-1", self.run))
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Append(appends) => {
                let (sent, after) = self.prepare(&appends);
                let result = self.store.append_all(sent, Metadata::default()).await;
                self.check_append(&appends, result, after, true);
            }
            Step::AppendIn(appends, commits) => {
                let (sent, after) = self.prepare(&appends);
                let mut transaction = self.store.pool().begin().await.unwrap();
                let result = self.store.append_in(&mut transaction, sent, Metadata::default()).await;
                if commits { transaction.commit().await } else { transaction.rollback().await }.unwrap();
                self.check_append(&appends, result, after, commits);
            }
            Step::Read { stream, after, up_to, backwards, page } => {
                let up_to_version = up_to.map(|version| Version::new(version as i64));
                let read =
                    ReadStream { after: Version::new(after as i64), up_to: up_to_version, until: None, backwards };
                let (mut found, mut next) = (vec![], Some(read));
                while let Some(from) = next {
                    let read = self.store.read_stream_page(&self.stream(stream), from, page).await.unwrap();
                    found.extend(read.events.into_iter().map(|event| event.event.as_str().to_owned()));
                    next = read.next;
                }
                let between =
                    |version: i64| version > after as i64 && up_to.is_none_or(|up_to| version <= up_to as i64);
                let of_stream = self.model.log.iter().filter(|event| event.0 == stream && between(event.1));
                let mut expected: Vec<_> = of_stream.map(|event| event.3.clone()).collect();
                if backwards {
                    expected.reverse();
                }
                assert_eq!(found, expected);
            }
            Step::Log { after, types, page } => self.check_log(after, &types, page).await,
        }
    }

    /// What to send, and the model as it is if that is accepted. Streams that are named later come later in the log of
    /// one append only by name, so the model is put in the same order.
    fn prepare(&self, appends: &[(usize, Belief, usize)]) -> (Vec<Append>, Model) {
        let mut after = self.model.clone();
        let mut sent = vec![];
        for &(nth, belief, count) in appends {
            let expected = self.model.expected(nth, belief);
            let payload = |event: usize| format!(r#"{{"at": "{nth}/{}/{event}"}}"#, self.model.log.len());
            let events = (0..count).map(|event| NewEvent::new(TYPES[(nth + event) % 3], payload(event))).collect();
            sent.push(Append { stream: self.stream(nth), expected, events });
        }
        let mut in_order: Vec<_> = appends.iter().zip(&sent).collect();
        in_order.sort_by_key(|((nth, ..), _)| *nth);
        for ((nth, ..), append) in in_order {
            for (event, new) in append.events.iter().enumerate() {
                let version = after.version(*nth) + 1;
                after.log.push((*nth, version, TYPES[(nth + event) % 3], new.payload.as_str().into()));
            }
        }
        (sent, after)
    }

    fn check_append(
        &mut self,
        appends: &[(usize, Belief, usize)],
        result: Result<Vec<annals::Receipt>, StoreError>,
        after: Model,
        commits: bool,
    ) {
        let first_wrong = appends.iter().find(|append| !self.model.accepts(append));
        match (result, first_wrong) {
            (Ok(receipts), None) => {
                for (receipt, (nth, _, count)) in receipts.iter().zip(appends) {
                    assert_eq!((receipt.version.get(), receipt.appended), (after.version(*nth), *count));
                }
                if commits {
                    self.model = after;
                }
            }
            (Err(StoreError::Conflict { stream, expected, actual }), Some(&(nth, belief, _))) => {
                assert_eq!(stream, self.stream(nth));
                assert_eq!((expected, actual.get()), (self.model.expected(nth, belief), self.model.version(nth)));
            }
            (result, wrong) => panic!("{result:?}, where the first that does not fit is {wrong:?}"),
        }
    }

    async fn check_log(&self, after: usize, types: &[usize], page: usize) {
        let categories: Vec<_> = (0..4).map(|nth| self.stream(nth).category().to_owned()).collect();
        let whole = ReadLog { categories: categories.clone(), ..ReadLog::default() };
        let all: Vec<_> = self.store.read_log(whole).try_collect().await.unwrap();
        let texts: Vec<_> = all.iter().map(|event| event.event.as_str()).collect();
        assert_eq!(texts, self.model.log.iter().map(|event| &*event.3).collect::<Vec<_>>());

        let position = all.get(after).map_or_else(Default::default, |event| event.position);
        let event_types: Vec<_> = types.iter().map(|nth| TYPES[*nth].to_owned()).collect();
        // One of the wanted types is skipped all the same, on every other page size.
        let skipped_types: Vec<_> = event_types.iter().take(page % 2).cloned().collect();
        let wanted = |name: &str| {
            let is_in = |list: &[String]| list.iter().any(|other| other == name);
            (types.is_empty() || is_in(&event_types)) && !is_in(&skipped_types)
        };
        let expected: Vec<_> =
            all.iter().filter(|event| event.position > position && wanted(&event.event_type)).cloned().collect();
        let (mut found, mut next) = (
            vec![],
            Some(ReadLog {
                after: position,
                up_to: None,
                event_types: event_types.clone(),
                categories,
                skipped_types: skipped_types.clone(),
            }),
        );
        while let Some(from) = next {
            let read = self.store.read_log_page(from, page).await.unwrap();
            found.extend(read.events);
            next = read.next;
        }
        assert_eq!(found, expected);
    }
}

#[test]
fn the_store_is_the_list_that_one_would_expect() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let database = runtime.block_on(database());
    let store = runtime.block_on(Annals::connect(crate::kit::config(database.url()))).unwrap();
    let runs = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Cases { cases: 40, failure_persistence: None, ..Cases::default() });

    let result = runner.run(&steps(), |steps| {
        runs.set(runs.get() + 1);
        let mut run = Run { store: &store, run: runs.get(), model: Model::default() };
        runtime.block_on(async {
            for step in steps {
                run.step(step).await;
            }
            run.check_log(0, &[], 1_000).await;
        });
        Ok::<(), TestCaseError>(())
    });

    println!("{} runs, log at {:?}", runs.get(), runtime.block_on(store.horizon()).unwrap());
    runtime.block_on(store.close());
    result.unwrap();
}
