//! P4: the documents of a view.

use annals::{Aggregate, App, Change, Context, Event, FailurePolicy, Id, Recorded, View, testing::database};
use futures::future::join_all;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status;
use crate::kit::{HOLDS, LONG, eventually, open};

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
enum TagEvent {
    /// Each tag is set, once, however often it is listed.
    Tagged {
        tags: Vec<String>,
    },
    Untagged {
        tags: Vec<String>,
    },
}
impl Event for TagEvent {}

#[derive(Default, Serialize, Deserialize)]
struct Page;

impl Aggregate for Page {
    const TYPE: &'static str = "page";
    type Command = Vec<TagEvent>;
    type Event = TagEvent;
    type Error = std::fmt::Error;

    fn handle(&self, command: &Vec<TagEvent>, _: &Context) -> Result<Vec<TagEvent>, std::fmt::Error> {
        Ok(command.clone())
    }

    fn apply(&mut self, _: &TagEvent) {}
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Tag {
    uses: i64,
    /// Beyond 64 bits, and a number that only survives as text.
    huge: u128,
    third: f64,
}

impl View for Tag {
    const NAME: &'static str = "tag";
    const INDEXES: &'static str = "create index uses on documents (((document->>'uses')::bigint)); \
                                   create index third on documents ((document->>'third'));";
    type Event = TagEvent;

    fn keys(recorded: &Recorded<TagEvent>) -> Vec<Id> {
        match &recorded.event {
            TagEvent::Tagged { tags } | TagEvent::Untagged { tags } => tags.iter().map(Id::from).collect(),
        }
    }

    fn apply(&mut self, _: &Id, recorded: &Recorded<TagEvent>) -> Change {
        if matches!(recorded.event, TagEvent::Untagged { .. }) {
            return Change::Remove;
        }
        *self = Self { uses: self.uses + 1, huge: u128::MAX - self.uses as u128, third: (self.uses + 1) as f64 / 3.0 };
        Change::Keep
    }
}

async fn tags(url: &str) -> App {
    open(url).await.app().aggregate::<Page>().view::<Tag>().start().await.unwrap()
}

fn strings(tags: &[&str]) -> Vec<String> {
    tags.iter().map(ToString::to_string).collect()
}

fn tag(tags: &[&str]) -> TagEvent {
    TagEvent::Tagged { tags: strings(tags) }
}

fn untag(tags: &[&str]) -> TagEvent {
    TagEvent::Untagged { tags: strings(tags) }
}

async fn apply(app: &App, events: Vec<TagEvent>) {
    let receipt = app.execute::<Page>(1, events).await.unwrap();
    app.wait_for(Tag::NAME, receipt.position, LONG).await.unwrap();
}

async fn uses(app: &App, key: &str) -> Option<i64> {
    app.get::<Tag>(key).await.unwrap().map(|tag| tag.uses)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_changes_each_of_its_documents_once() {
    let database = database().await;
    let app = tags(database.url()).await;

    apply(&app, vec![tag(&["a", "b", "a"]), tag(&["b"]), tag(&[])]).await;
    apply(&app, vec![tag(&["b", "c"])]).await;

    assert_eq!((uses(&app, "a").await, uses(&app, "b").await, uses(&app, "c").await), (Some(1), Some(3), Some(1)));
    let b = app.get::<Tag>("b").await.unwrap().unwrap();
    assert_eq!(b, Tag { uses: 3, huge: u128::MAX - 2, third: 1.0 });
    assert_eq!(app.count::<Tag>().await.unwrap(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_document_begins_anew_within_a_batch_and_over_batches() {
    let database = database().await;
    let app = tags(database.url()).await;

    apply(&app, vec![tag(&["a", "b", "c"]), tag(&["a"]), untag(&["a", "b"]), tag(&["a"])]).await;
    assert_eq!((uses(&app, "a").await, uses(&app, "b").await, uses(&app, "c").await), (Some(1), None, Some(1)));
    apply(&app, vec![untag(&["a", "c"]), untag(&["never"])]).await;
    assert_eq!(app.count::<Tag>().await.unwrap(), 0);
    apply(&app, vec![tag(&["a"])]).await;
    apply(&app, vec![untag(&["a"]), tag(&["a"]), untag(&["a"]), tag(&["a"]), tag(&["a"])]).await;

    assert_eq!(uses(&app, "a").await, Some(2));
    assert_eq!(app.count::<Tag>().await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_listed_page_by_page_in_the_order_of_their_keys() {
    let database = database().await;
    let app = tags(database.url()).await;
    let keys: Vec<String> =
        (0..25).map(|nth| format!("{nth:02}")).chain(["Z".into(), "a".into(), "é".into()]).collect();
    apply(&app, vec![TagEvent::Tagged { tags: keys.iter().rev().cloned().collect() }]).await;

    let (mut listed, mut after) = (vec![], None);
    loop {
        let page = app.list::<Tag>(after.as_ref(), 10).await.unwrap();
        assert!(page.len() <= 10);
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        listed.extend(page.into_iter().map(|(key, _)| key.to_string()));
    }

    assert_eq!(listed, keys);
    assert_eq!(app.count::<Tag>().await.unwrap(), 28);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_any_characters_are_kept_apart() {
    let database = database().await;
    let app = tags(database.url()).await;
    let long = "ö".repeat(1_000);
    let keys =
        ["", " ", "'", "\"", "o'brien\"; drop table documents; --", "a\\nb", "a\nb", "🦀", "{}", "%", "null", &long];

    apply(&app, vec![tag(&keys), tag(&keys[1..]), untag(&["%"])]).await;

    let found = join_all(keys.iter().map(|key| uses(&app, key))).await;
    let expected = keys.iter().map(|key| if *key == "%" { None } else { Some(2 - i64::from(key.is_empty())) });
    assert_eq!(found, expected.collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_no_index_takes_is_a_visible_error() {
    for (key, words) in [("x".repeat(10_000), "has 10000 bytes, the limit is 2000"), ("a\0b".into(), "NUL character")] {
        let database = database().await;
        let app = open(database.url()).await.app().aggregate::<Page>().view::<ById>().start().await.unwrap();

        // An event cannot hold a NUL, a key that a view makes of it can.
        let key = key.replace('\0', "␀");
        let receipt = app.execute::<Page>(1, vec![tag(&[&key])]).await.unwrap();
        eventually("it is shown", || async { status(&app, "by_id").failed_position == Some(receipt.position) }).await;

        let error = status(&app, "by_id").last_error.unwrap();
        assert!(error.contains("by_id") && error.contains(words), "{error}");
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct ById;

impl View for ById {
    const NAME: &'static str = "by_id";
    const FAILURES: FailurePolicy = HOLDS;
    type Event = TagEvent;

    fn keys(recorded: &Recorded<TagEvent>) -> Vec<Id> {
        Tag::keys(recorded).into_iter().map(|key| Id::from(key.replace('␀', "\0"))).collect()
    }

    fn apply(&mut self, _: &Id, _: &Recorded<TagEvent>) -> Change {
        Change::Keep
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_open_to_sql_with_the_views_own_indexes() {
    let database = database().await;
    let app = tags(database.url()).await;
    apply(&app, vec![tag(&["a", "b"]), tag(&["b"])]).await;
    let pool = app.store().pool();

    let busy: Vec<String> =
        sqlx::query_scalar("select key from annals_tag.documents where (document->>'uses')::bigint > 1")
            .fetch_all(pool)
            .await
            .unwrap();
    let mut tx = pool.begin().await.unwrap();
    sqlx::query("set local enable_seqscan = off").execute(&mut *tx).await.unwrap();
    let plan = "explain select key from annals_tag.documents where (document->>'uses')::bigint = 2";
    let plan: Vec<String> = sqlx::query_scalar(plan).fetch_all(&mut *tx).await.unwrap();

    assert_eq!(busy, ["b"]);
    assert!(plan.iter().any(|line| line.contains("uses")), "{plan:?}");
    let shown: i64 = sqlx::query_scalar("select position from annals_tag._position").fetch_one(pool).await.unwrap();
    assert_eq!(shown, 2, "rows and their position are read together");
}
