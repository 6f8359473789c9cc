//! P6: what does not fit together is found at the start, before a command is taken.

use annals::{
    Aggregate, Annals, BoxError, Change, Config, Context, ContractError, Event, Id, InvalidInput, Projector, Recorded,
    StartError, StoreError, Upcast, View, testing::database,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    kit::{Account, AccountEvent, open, start_error},
    shop::{Journal, Order, OrderEvent, Spend},
};

/// An aggregate that only matters for its events.
macro_rules! aggregate {
    ($name:ident, $category:literal, $event:ty) => {
        #[derive(Default, Serialize, Deserialize)]
        struct $name;

        impl Aggregate for $name {
            const TYPE: &'static str = $category;
            type Command = ();
            type Event = $event;
            type Error = std::fmt::Error;

            fn handle(&self, (): &(), _: &Context) -> Result<Vec<$event>, std::fmt::Error> {
                Ok(vec![])
            }

            fn apply(&mut self, _: &$event) {}
        }
    };
}

/// A projector that does nothing.
macro_rules! projector {
    ($name:ident, $called:literal, $event:ty) => {
        struct $name;

        impl Projector for $name {
            const NAME: &'static str = $called;
            const TABLES: &'static str = "";
            type Event = $event;

            async fn apply(&self, _: &[Recorded<$event>], _: &mut sqlx::PgConnection) -> Result<(), BoxError> {
                Ok(())
            }
        }
    };
}

#[derive(Serialize, Deserialize, JsonSchema)]
enum Renamed {
    Moved { to: String },
}
impl Event for Renamed {
    fn schema_version(_: &str) -> u16 {
        3
    }

    fn upcasts() -> Vec<Upcast> {
        vec![Upcast { event_type: "Moved", from: 1, upcast: |json, _| Ok(json) }]
    }
}
aggregate!(HalfUpcast, "half", Renamed);

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type")]
enum Internal {
    Moved { to: String },
}
impl Event for Internal {}
aggregate!(InternallyTagged, "internal", Internal);

aggregate!(SecondOrder, "order", OrderEvent);
aggregate!(Dashed, "past-order", OrderEvent);

projector!(Loud, "Journal!", OrderEvent);
projector!(SameName, "spend", OrderEvent);
projector!(Nameless, "", OrderEvent);
projector!(Endless, "a_name_that_is_longer_than_the_name_of_a_schema_may_be", OrderEvent);

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Everything {
    Order(OrderEvent),
    Account(AccountEvent),
}
impl Event for Everything {
    const UNION: bool = true;
}

#[derive(Default, Serialize, Deserialize)]
struct Overview;

impl View for Overview {
    const NAME: &'static str = "overview";
    type Event = Everything;

    fn keys(_: &Recorded<Everything>) -> Vec<Id> {
        vec![]
    }

    fn apply(&mut self, _: &Id, _: &Recorded<Everything>) -> Change {
        Change::Keep
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_cannot_be_stored_or_read_are_named_at_the_start() {
    let database = database().await;
    let store = open(database.url()).await;

    let (error, text) = start_error(store.app().aggregate::<HalfUpcast>()).await;
    assert!(matches!(error, StartError::Contract(ContractError::Versions { .. })), "{error:?}");
    assert!(text.contains("Moved has no upcast from version 2 to 3"), "{text}");
    let (error, text) = start_error(store.app().aggregate::<InternallyTagged>()).await;
    assert!(matches!(error, StartError::Contract(ContractError::NotTagged { .. })), "{error:?}");
    assert!(text.contains("internally tagged enum Internal"), "{text}");
    let (error, text) = start_error(store.app().aggregate::<Order>().aggregate::<SecondOrder>()).await;
    assert!(matches!(error, StartError::Contract(ContractError::Twice { .. })), "{error:?}");
    assert!(text.contains("\"order\""), "{text}");
    let (error, text) = start_error(store.app().aggregate::<Dashed>()).await;
    assert!(matches!(error, StartError::Contract(ContractError::Category { .. })), "{error:?}");
    assert!(text.contains("past-order"), "{text}");
    let (error, text) = start_error(store.app().aggregate::<Order>().view::<Overview>()).await;
    assert!(matches!(error, StartError::Contract(ContractError::Reader { .. })), "{error:?}");
    assert!(text.contains("\"account\""), "{text}");
    let (error, text) = start_error(store.app().aggregate::<Account>().view::<Spend>()).await;
    assert!(matches!(error, StartError::Contract(ContractError::Reader { .. })), "{error:?}");
    assert!(text.contains("no registered aggregate has these events; add .aggregate::<…>()"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_read_models_that_cannot_be_are_refused_and_nothing_is_set_up() {
    let database = database().await;
    let store = open(database.url()).await;
    let app = || store.app().aggregate::<Order>().projector(Journal);

    for (builder, words) in [
        (app().projector(Loud), "\"Journal!\""),
        (app().projector(Nameless), "\"\""),
        (app().projector(Endless), "50 bytes"),
        (app().view::<Spend>().projector(SameName), "two followers are called \"spend\""),
    ] {
        let (error, text) = start_error(builder).await;
        assert!(matches!(error, StartError::Invalid(InvalidInput::Other(_))), "{error:?}");
        assert!(text.contains(words), "{text}");
    }

    let followers: i64 =
        sqlx::query_scalar("select count(*) from annals.followers").fetch_one(store.pool()).await.unwrap();
    assert_eq!(followers, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_not_there_is_a_typed_error() {
    let nobody = Annals::connect(Config::new("postgres://annals:secret@127.0.0.1:1/nowhere")).await.unwrap_err();
    let unnamed = Annals::connect(Config::new("not a url")).await.unwrap_err();

    assert!(matches!(nobody, StoreError::Unavailable { .. }) && nobody.is_retryable(), "{nobody:?}");
    assert!(!format!("{nobody} {nobody:?}").contains("secret"));
    assert!(!unnamed.is_retryable(), "{unnamed:?}");
}
