//! Whether a build can read the log, before it is deployed.

use annals::testing::database;
use sqlx::PgPool;

use crate::{Shop, text};

/// Rows of everything that a check could write, and the schemas.
async fn content(pool: &PgPool) -> (i64, i64, i64, i64, i64) {
    let counts = "select (select count(*) from annals.followers), (select count(*) from annals.generations), \
        (select count(*) from annals.dead_letters), (select sum(position)::bigint from annals.checkpoints), \
        (select count(*) from pg_namespace)";
    sqlx::query_as(counts).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn a_build_that_can_read_the_log_passes_and_one_that_cannot_is_told_where() {
    let shop = Shop::open().await;
    let before = content(&shop.pool).await;

    let said = shop.prints(&["replay", "check"], 0);
    assert!(
        said.contains("of 1,000 streams up to position ") && said.contains("can read and apply them all"),
        "{said}"
    );
    assert!(said.ends_with("nothing was written\n"), "{said}");
    let found = shop.objects(&["replay", "check", "--json"], 0);
    assert_eq!((found.len(), &found[0]["streams"], &found[0]["failure"]), (1, &1_000.into(), &serde_json::Value::Null));
    assert_eq!((&found[0]["aggregates"][0], found[0]["followers"].as_array().unwrap().len()), (&"order".into(), 4));
    assert_eq!(content(&shop.pool).await, before);

    shop.prints(&["plant-poison"], 0);
    let found = shop.objects(&["replay", "check", "--json"], 1);
    let failure = &found[0]["failure"];
    assert_eq!((&failure["by"], &failure["event_type"]), (&"aggregate order".into(), &"OrderPlaced".into()));
    assert_eq!(failure["position"], found[0]["position"]);
    let output = shop.run(&["replay", "check"]);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert_eq!(shop.unread(&["replay", "check"]).1, Some(1));
    for part in ["do not deploy this build: aggregate order fails at position ", "invalid type", "check again"] {
        assert!(errors.contains(part), "{part} is missing in {errors}");
    }
}

#[tokio::test]
async fn a_check_makes_no_store_where_there_is_none() {
    let database = database().await;
    let shop = Shop { pool: database.pool().await, database };

    let output = shop.run(&["replay", "check"]);

    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("store annals lacks 0001_store"), "{errors}");
    assert_eq!(shop.number("select count(*) from pg_namespace where nspname like 'annals%'").await, 0);
}
