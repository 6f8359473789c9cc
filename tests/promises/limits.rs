//! What can never be stored is refused with a typed error before anything reaches Postgres; the rest is stored exactly.

use annals::{
    Annals, Append, Config, InvalidInput, Limits, Metadata, NewEvent, PayloadLimits, ReadStream, StoreError, StreamId,
    testing::database,
};

use crate::append::{ANY, append, ask, at, count, events, open, stream};

/// What is said about one event with `payload`.
async fn refusal(store: &Annals, payload: &str) -> InvalidInput {
    let refused = store.append(&stream("note-1"), ANY, vec![NewEvent::new("Noted", payload)]).await;
    let shown: String = payload.chars().take(60).collect();
    match refused {
        Err(error @ StoreError::Invalid(_)) if error.is_retryable() => panic!("{error} is not cured by a retry"),
        Err(StoreError::Invalid(invalid)) => invalid,
        other => panic!("{shown}: {other:?}"),
    }
}

/// How many rows and positions there are, so that nothing was as much as tried.
async fn traces(url: &str) -> i64 {
    ask(url, "select (select count(*) from annals.events) + coalesce(pg_sequence_last_value('annals.positions'), 0)")
        .await
}

#[test]
fn a_stream_name_that_could_deceive_is_refused() {
    let long = "x".repeat(256);
    for (name, rule) in [
        ("", "empty"),
        (&*long, "255 bytes"),
        (&"é".repeat(128), "255 bytes"),
        ("order-\n1", "control"),
        ("order-\u{0}", "control"),
        ("order-\u{7f}", "control"),
        ("order-\u{85}", "control"),
        ("order-\u{202e}1", "bidirectional"),
        ("order-\u{2066}1", "bidirectional"),
        ("order-\u{200f}1", "bidirectional"),
        ("order-\u{61c}1", "bidirectional"),
        ("$saga-1", "`$`"),
    ] {
        let refused = StreamId::new(name);
        let Err(InvalidInput::StreamName { rule: named, .. }) = &refused else { panic!("{name:?}: {refused:?}") };
        assert!(named.contains(rule), "{name:?}: {named}");
    }
    for (category, id) in [("", "1"), ("my-order", "1"), ("$order", "1")] {
        assert!(StreamId::of(category, id).is_err(), "{category}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_other_name_is_stored_and_found_as_it_is() {
    let database = database().await;
    let store = open(database.url()).await;
    let names = [
        "x".repeat(255),
        "order-'; drop table annals.events; --".into(),
        "order-\"quoted\"".into(),
        "order-{a,b}\\N,null".into(),
        "order-%_\\".into(),
        "order-🛒👩‍👩‍👧".into(),
        "ORDER-1".into(),
        "order-1".into(),
        "order-1 ".into(),
        " ".into(),
        "ordér-1".into(),
        "ordér-1".replace('é', "e\u{301}"),
        "null".into(),
        "-".into(),
        "{}".into(),
    ];

    for name in &names {
        store.append(&stream(name), at(0), vec![NewEvent::new(name.clone(), "1")]).await.unwrap();
    }

    assert_eq!(count(&store).await, names.len() as i64);
    for name in &names {
        let page = store.read_stream_page(&stream(name), ReadStream::default(), 10).await.unwrap();
        assert_eq!((page.events.len(), page.events[0].stream.as_str()), (1, name.as_str()));
        assert_eq!(*page.events[0].event_type, **name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_cannot_be_stored_or_read_back_is_refused_with_its_path() {
    let database = database().await;
    let store = open(database.url()).await;
    let before = traces(database.url()).await;

    for (payload, path) in [
        (r#"{"a": {"b": "\u0000"}}"#, "$.a.b"),
        (r#"{"a": ["x", "\ud800"]}"#, "$.a[1]"),
        (r#"{"a": "\udc00\ud800"}"#, "$.a"),
        (r#"{"a": "\ud800A"}"#, "$.a"),
        (r#"[1, 1e400]"#, "$[1]"),
        (r#"{"a": -1e999}"#, "$.a"),
        ("", "$"),
        ("{", "$"),
        ("nul", "$"),
        ("NaN", "$"),
        ("1 2", "$"),
        ("{'a': 1}", "$"),
        (r#"{"a": 01}"#, "$.a"),
        ("[1,]", "$[1]"),
        ("\"a\nb\"", "$"),
        ("\u{feff}1", "$"),
    ] {
        let refused = refusal(&store, payload).await;
        let InvalidInput::Field { field, event_type, .. } = &refused else { panic!("{payload}: {refused:?}") };
        assert_eq!((&**field, &**event_type), (path, "Noted"), "{payload}: {refused}");
    }

    assert_eq!(traces(database.url()).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn size_depth_and_number_have_limits_that_can_be_set() {
    let database = database().await;
    let store = open(database.url()).await;
    let text = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let before = traces(database.url()).await;

    let too_long = refusal(&store, &text((1 << 20) + 1)).await;
    let huge = refusal(&store, &text(300 << 20)).await;
    let too_deep = refusal(&store, &nested(101)).await;
    let far_too_deep = refusal(&store, &nested(7_000)).await;
    let too_many = store.append(&stream("many-1"), ANY, events(10_001)).await;
    let spread = (0..3).map(|nth| append(&format!("many-{nth}"), ANY, 5_000)).collect();
    let too_many_together = store.append_all(spread, Metadata::default()).await;
    let long = || NewEvent::new("Noted", text(1 << 20));
    let too_much = store.append(&stream("much-1"), ANY, (0..65).map(|_| long()).collect()).await;

    assert!(matches!(too_long, InvalidInput::PayloadTooLarge { limit: 1_048_576, .. }), "{too_long:?}");
    assert!(matches!(huge, InvalidInput::PayloadTooLarge { .. }), "{huge:?}");
    assert!(matches!(too_deep, InvalidInput::Field { .. }), "{too_deep:?}");
    assert!(matches!(far_too_deep, InvalidInput::Field { .. }));
    for (result, count) in [(too_many, 10_001), (too_many_together.map(|_| panic!()), 15_000)] {
        let Err(StoreError::Invalid(InvalidInput::TooManyEvents { events, limit, .. })) = result else { panic!() };
        assert_eq!((events, limit), (count, 10_000));
    }
    let Err(StoreError::Invalid(InvalidInput::AppendTooLarge { limit, .. })) = too_much else { panic!("{too_much:?}") };
    assert_eq!((limit, traces(database.url()).await), (64 << 20, before));

    store.append(&stream("note-1"), at(0), vec![long(), NewEvent::new("Noted", nested(100))]).await.unwrap();
    let limits = Limits { payload: PayloadLimits { bytes: 10, depth: 1 }, events: 1, ..Limits::default() };
    let strict = Annals::connect(Config { limits, ..crate::kit::config(database.url()) }).await.unwrap();
    assert!(matches!(refusal(&strict, "[[1]]").await, InvalidInput::Field { .. }));
    assert!(matches!(refusal(&strict, &text(11)).await, InvalidInput::PayloadTooLarge { limit: 10, .. }));
    assert!(strict.append(&stream("note-1"), ANY, events(2)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn words_around_an_event_are_checked_too() {
    let database = database().await;
    let store = open(database.url()).await;
    let before = traces(database.url()).await;
    let actor = |actor: &str| Metadata { actor: Some(actor.into()), ..Metadata::default() };
    let trace = |trace: &str| Metadata { traceparent: Some(trace.into()), ..Metadata::default() };

    for name in ["", "a\nb", "a\0", &"x".repeat(256)] {
        let refused = store.append(&stream("note-1"), ANY, vec![NewEvent::new(name.to_owned(), "1")]).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{name:?}: {refused:?}");
    }
    for version in [0, 32_768, u16::MAX] {
        let event = NewEvent { schema_version: version, ..NewEvent::new("Noted", "1") };
        let refused = store.append(&stream("note-1"), ANY, vec![event]).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{version}: {refused:?}");
    }
    for metadata in
        [actor("a\0b"), actor("a\nb"), actor(&"x".repeat(256)), trace("a b"), trace("é"), trace(&"0".repeat(129))]
    {
        let refused = store.append_all(vec![append("note-1", ANY, 1)], metadata.clone()).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{metadata:?}: {refused:?}");
    }
    let twice = vec![append("note-1", ANY, 1), append("note-1", ANY, 1)];
    for appends in [vec![], twice] {
        let refused = store.append_all(appends, Metadata::default()).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    }
    let mut transaction = store.pool().begin().await.unwrap();
    let bad = vec![Append { stream: stream("note-1"), expected: ANY, events: vec![NewEvent::new("Noted", "{")] }];
    let refused = store.append_in(&mut transaction, bad, Metadata::default()).await;
    assert!(matches!(refused, Err(StoreError::Invalid(InvalidInput::Field { .. }))), "{refused:?}");
    transaction.rollback().await.unwrap();
    assert_eq!(traces(database.url()).await, before);

    store.append_all(vec![append("note-1", ANY, 1)], actor("O'Neil; \"日本\" 🛒")).await.unwrap();
    let read = store.read_stream_page(&stream("note-1"), ReadStream::default(), 1).await.unwrap();
    assert_eq!(read.events[0].metadata.actor.as_deref(), Some("O'Neil; \"日本\" 🛒"));
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_bytes_are_exact_bytes() {
    let database = database().await;
    let store = open(database.url()).await;
    let payloads = [
        " {\t\"b\" : 1,\r\n \"a\":2 , \"b\" :3 } ",
        r#"{"price":1.10,"big":12345678901234567890123,"exp":1E+2,"neg":-0}"#,
        r#""\u00e9\/\ud83d\uded2 é 🛒""#,
        r#"{"":{"":[]}}"#,
        "null",
        "  7",
        r#"["{a,b}", "NULL", "\\N", "'", "\""]"#,
    ];

    let all = payloads.iter().map(|payload| NewEvent::new("Noted", *payload)).collect();
    store.append(&stream("note-1"), at(0), all).await.unwrap();

    let read = store.read_stream_page(&stream("note-1"), ReadStream::default(), 100).await.unwrap();
    let texts: Vec<_> = read.events.iter().map(|event| event.event.as_str()).collect();
    assert_eq!(texts, payloads);
}
