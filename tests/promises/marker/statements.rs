//! The SQL files: no plain read of the sequence, no draw but the column's default, and each fits the migrated schema.

use std::{fs, path::Path};

use annals::testing::database;
use sqlx::{AssertSqlSafe, Executor, SqlSafeStr, postgres::PgPoolOptions};

use super::open;

/// Every `.sql` file of the framework and of the migrations, without comments, in lower case.
fn sql_files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folders = ["framework/src/sql", "migrations"].map(|folder| root.join(folder));
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    let text = |path: &Path| {
        let text = fs::read_to_string(path).unwrap().to_lowercase();
        let code = text.lines().map(|line| line.split_once("--").map_or(line, |(code, _)| code));
        code.collect::<Vec<_>>().join("\n").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    files
        .filter(|path| path.extension().is_some_and(|end| end == "sql"))
        .map(|path| (name(&path), text(&path)))
        .collect()
}

/// What a file does to the sequence that the marker's proof does not allow.
fn faults(text: &str) -> Vec<&'static str> {
    let plain = text.replace("pg_sequence_last_value", "").contains("last_value");
    let from_sequence = text.contains("from annals.positions") || text.contains("join annals.positions");
    // The column's default, and the bound of a writer that finds no last value.
    let drawn = [
        "default nextval('annals.positions')",
        "last_value('annals.positions'), pg_catalog.nextval('annals.positions'))",
    ];
    let draws = drawn.iter().fold(text.to_owned(), |text, known| text.replace(known, "")).contains("nextval(");
    // The migration that makes it, and the advice to an operator.
    let set = [
        "create sequence annals.positions as bigint minvalue 0 start 1 cache 1 no cycle; select pg_catalog.setval(",
        "'select setval(",
    ];
    let sets = set.iter().fold(text.to_owned(), |text, known| text.replace(known, "")).contains("setval(");
    [
        (plain || from_sequence, "reads the sequence without its lock"),
        (draws, "draws a position outside the column's default"),
        (sets, "sets the sequence"),
        (text.contains("on conflict") && text.contains("into annals.events"), "drops events that are in the way"),
        (text.contains("disable trigger"), "disables a trigger"),
    ]
    .into_iter()
    .filter_map(|(broken, what)| broken.then_some(what))
    .collect()
}

#[test]
fn no_statement_reads_the_sequence_without_its_lock_or_draws_from_it_by_itself() {
    let files = sql_files();
    assert!(files.len() > 30, "{} files", files.len());

    for (name, text) in &files {
        assert_eq!(faults(text), [""; 0], "{name}");
    }
    let readers = files.iter().filter(|(_, text)| text.contains("pg_sequence_last_value('annals.positions')"));
    assert!(readers.count() >= 4, "the lint no longer finds what it looks at");
}

#[test]
fn the_lint_finds_what_it_is_there_for() {
    for (text, fault) in [
        ("select last_value from annals.positions", "reads the sequence without its lock"),
        ("select * from annals.positions", "reads the sequence without its lock"),
        ("insert into annals.events (position) values (nextval('annals.positions'))", "draws a position"),
        ("select setval('annals.positions', 1)", "sets the sequence"),
    ] {
        assert!(faults(text).iter().any(|found| found.starts_with(fault)), "{text}");
    }
}

#[tokio::test]
async fn every_statement_fits_the_schema_that_the_migrations_make() {
    let database = database().await;
    let store = open(&database).await;
    // One connection: a prepared statement belongs to it.
    let pool = PgPoolOptions::new().max_connections(1).connect_with(database.options()).await.unwrap();
    let mut prepared = 0;

    for (name, text) in store.statements() {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("--")).collect::<Vec<_>>().join("\n");
        // Files that hold several statements are run at start-up, by every other test.
        if code.trim_end().trim_end_matches(';').contains(';') {
            continue;
        }
        let result = (&pool).prepare(AssertSqlSafe(text).into_sql_str()).await;
        assert!(result.is_ok(), "{name}: {:?}", result.err());
        prepared += 1;
    }
    assert!(prepared > 25, "{prepared} statements");
}
