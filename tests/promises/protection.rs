//! P11: no role but the owner's can alter history.

use annals::{Annals, Config, ExpectedVersion, NewEvent, Severity, StreamId, testing::database};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};

use crate::{app, shop::Order};

const PASSWORD: &str = "a login of this test";

/// Logs in as a new role that is a member of `role`. The role is dropped with `Login`.
async fn login(options: PgConnectOptions, admin: &mut PgConnection, role: &str) -> (String, PgConnectOptions) {
    let name = format!("{role}_login");
    let make = format!("create role \"{name}\" login password '{PASSWORD}' in role \"{role}\"");
    sqlx::raw_sql(sqlx::AssertSqlSafe(make)).execute(admin).await.unwrap();
    let options = options.username(&name).password(PASSWORD);
    (name, options)
}

async fn drop_roles(admin: &mut PgConnection, roles: &[&str]) {
    for role in roles {
        let drop = format!("drop owned by \"{role}\" cascade; drop role \"{role}\"");
        sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&mut *admin).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writer_role_appends_and_projects_and_cannot_alter_history() {
    let database = database().await;
    let mut admin = PgConnection::connect_with(&database.options()).await.unwrap();
    let owner_app = app::start(database.url()).await;
    let placed = owner_app.execute::<Order>(1, app::place("ada", 1)).await.unwrap();
    owner_app.wait_for_all(placed.position, app::LONG).await.unwrap();
    let roles = owner_app.store().create_roles().await.unwrap();
    assert_eq!(owner_app.store().create_roles().await.unwrap(), roles);
    owner_app.shutdown().await;
    let (writer, options) = login(database.options(), &mut admin, &roles.writer).await;
    let (reader, reads) = login(database.options(), &mut admin, &roles.reader).await;

    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(2).connect_with(options.clone()).await.unwrap();
    let store = Annals::with_pool(pool, Config::default()).await.unwrap();
    let app = store.app().aggregate::<Order>().view::<crate::shop::Spend>().projector(crate::shop::Journal);
    let app = app.start().await.unwrap();
    let receipt = app.execute::<Order>(2, app::place("ada", 2)).await.unwrap();
    app.wait_for_all(receipt.position, app::LONG).await.unwrap();
    app.shutdown().await;

    let mut writer_conn = PgConnection::connect_with(&options).await.unwrap();
    let mut reader_conn = PgConnection::connect_with(&reads).await.unwrap();
    for attack in [
        "update annals.events set payload = '{}'",
        "delete from annals.events",
        "truncate annals.events cascade",
        "alter table annals.events disable trigger refuse_change",
        "drop trigger refuse_change on annals.events",
        "set session_replication_role = replica",
        "select setval('annals.positions', 1)",
        "insert into annals.events (position, version, event_id, correlation_id, stream, event_type, payload)
         values (1000, 1, gen_random_uuid(), gen_random_uuid(), 'a-1', 'A', '{}')",
        "insert into annals.events (recorded_at, version, event_id, correlation_id, stream, event_type, payload)
         values (now(), 1, gen_random_uuid(), gen_random_uuid(), 'a-1', 'A', '{}')",
        "delete from annals.commands",
        "update annals.commands set version = 0",
    ] {
        let refused = sqlx::raw_sql(attack).execute(&mut writer_conn).await.unwrap_err();
        let code = refused.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
        assert_eq!(code, "42501", "{attack}: {refused}");
        assert!(sqlx::raw_sql(attack).execute(&mut reader_conn).await.is_err(), "{attack}");
    }
    let events: i64 =
        sqlx::query_scalar("select count(*) from annals.events").fetch_one(&mut reader_conn).await.unwrap();
    assert_eq!(events, 2);

    drop((writer_conn, reader_conn));
    drop_roles(&mut admin, &[&writer, &reader, &roles.writer, &roles.reader]).await;
    let give_back =
        format!("reassign owned by \"{0}\" to current_user; drop owned by \"{0}\"; drop role \"{0}\"", roles.owner);
    sqlx::raw_sql(sqlx::AssertSqlSafe(give_back)).execute(&mut admin).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_is_stopped_by_the_guards_even_in_a_replication_role() {
    let database = database().await;
    let store = Annals::connect(Config::new(database.url())).await.unwrap();
    let stream = StreamId::new("a-1").unwrap();
    store.append(&stream, ExpectedVersion::NoStream, vec![NewEvent::new("A", "{}")]).await.unwrap();

    let mut admin = PgConnection::connect_with(&database.options()).await.unwrap();
    sqlx::raw_sql("set session_replication_role = replica").execute(&mut admin).await.unwrap();
    for attack in ["update annals.events set version = 2", "delete from annals.events", "truncate annals.events"] {
        let refused = sqlx::raw_sql(attack).execute(&mut admin).await.unwrap_err();
        assert!(refused.to_string().contains("append-only"), "{attack}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_what_is_missing_and_what_cures_it() {
    let database = database().await;
    let store = Annals::connect(Config::new(database.url())).await.unwrap();
    let pool = database.pool().await;
    let healthy = store.doctor().await.unwrap();
    assert!(healthy.iter().any(|finding| finding.what.contains("superuser")), "{healthy:?}");
    assert!(!healthy.iter().any(|finding| finding.what.contains("refuse_change")), "{healthy:?}");

    sqlx::raw_sql(
        "drop trigger refuse_change on annals.commands; alter table annals.events disable trigger mark_in_flight",
    )
    .execute(&pool)
    .await
    .unwrap();
    let findings = store.doctor().await.unwrap();

    let faults: Vec<_> = findings.iter().filter(|finding| finding.severity == Severity::Fault).collect();
    assert!(faults.iter().any(|fault| fault.what.contains("refuse_change on annals.commands")), "{findings:?}");
    assert!(faults.iter().any(|fault| fault.what.contains("mark_in_flight")), "{findings:?}");
}
