//! P11: no role but the owner's can alter history.

use std::error::Error;

use annals::{Annals, Config, ExpectedVersion, NewEvent, Roles, Severity, StoreError, StreamId, testing::database};
use sqlx::{
    AssertSqlSafe, Connection, PgConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

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

/// Drops the roles, with the objects of the owner given back to `admin`.
async fn drop_all(admin: &mut PgConnection, roles: &Roles) {
    drop_roles(admin, &[&roles.writer, &roles.reader]).await;
    let give_back = format!("reassign owned by \"{}\" to current_user", roles.owner);
    run(admin, give_back).await;
    drop_roles(admin, &[&roles.owner]).await;
}

async fn run(conn: &mut PgConnection, sql: impl Into<String>) {
    sqlx::raw_sql(AssertSqlSafe(sql.into())).execute(conn).await.unwrap();
}

/// A store that is opened as `options` says.
async fn open(options: PgConnectOptions, config: Config) -> Annals {
    let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
    Annals::with_pool(pool, config).await.unwrap()
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

    let store = open(options.clone(), Config::default()).await;
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
    drop_roles(&mut admin, &[&writer, &reader]).await;
    drop_all(&mut admin, &roles).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_later_beside_the_read_models_stays_closed_to_the_writer() {
    let database = database().await;
    let mut admin = PgConnection::connect_with(&database.options()).await.unwrap();
    let store = Annals::connect(Config::new(database.url())).await.unwrap();
    let roles = store.create_roles().await.unwrap();
    let (writer, options) = login(database.options(), &mut admin, &roles.writer).await;

    run(&mut admin, "create schema audit; create table audit.log (line text)").await;
    run(&mut admin, "create table annals.later (id bigint)").await;
    run(&mut admin, format!("set role \"{}\"; create table annals.migrated (id bigint); reset role", roles.owner))
        .await;
    Annals::connect(Config { store: "second".into(), ..Config::new(database.url()) }).await.unwrap();
    store.create_roles().await.unwrap();

    let mut conn = PgConnection::connect_with(&options).await.unwrap();
    for attack in [
        "select from audit.log",
        "insert into audit.log values ('forged')",
        "insert into annals.later values (1)",
        "delete from annals.later",
        "insert into annals.migrated values (1)",
        "truncate annals.migrated",
        "select from second.events",
        "insert into second.events (version, event_id, correlation_id, stream, event_type, payload)
         values (1, gen_random_uuid(), gen_random_uuid(), 'a-1', 'A', '{}')",
        "select nextval('second.positions')",
    ] {
        let refused = sqlx::raw_sql(attack).execute(&mut conn).await.unwrap_err();
        let code = refused.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
        assert_eq!(code, "42501", "{attack}: {refused}");
    }

    drop(conn);
    drop_roles(&mut admin, &[&writer]).await;
    drop_all(&mut admin, &roles).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_model_that_is_set_up_after_the_roles_works_for_writer_and_reader() {
    let database = database().await;
    let mut admin = PgConnection::connect_with(&database.options()).await.unwrap();
    let roles = Annals::connect(Config::new(database.url())).await.unwrap().create_roles().await.unwrap();
    app::start(database.url()).await.shutdown().await;
    let (writer, options) = login(database.options(), &mut admin, &roles.writer).await;
    let (reader, reads) = login(database.options(), &mut admin, &roles.reader).await;

    let store = open(options, Config::default()).await;
    let app = store.app().aggregate::<Order>().view::<crate::shop::Spend>().projector(crate::shop::Journal);
    let app = app.start().await.unwrap();
    let receipt = app.execute::<Order>(1, app::place("ada", 500)).await.unwrap();
    app.wait_for_all(receipt.position, app::LONG).await.unwrap();
    app.shutdown().await;

    let mut conn = PgConnection::connect_with(&reads).await.unwrap();
    let entries: i64 =
        sqlx::query_scalar("select count(*) from annals_journal.entries").fetch_one(&mut conn).await.unwrap();
    assert_eq!(entries, 1);
    assert!(sqlx::raw_sql("delete from annals_journal.entries").execute(&mut conn).await.is_err());

    // The next call gives it to the owner role, its tables too.
    assert_eq!(open(database.options(), Config::default()).await.create_roles().await.unwrap(), roles);
    let owner: String = sqlx::query_scalar(
        "select relowner::regrole::text from pg_class where oid = 'annals_journal.entries'::regclass",
    )
    .fetch_one(&mut admin)
    .await
    .unwrap();
    assert_eq!(owner, roles.owner);

    drop(conn);
    store.close().await;
    drop_roles(&mut admin, &[&writer, &reader]).await;
    drop_all(&mut admin, &roles).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_of_a_database_whose_name_begins_alike_are_refused() {
    let database = database().await;
    let mut admin = PgConnection::connect_with(&database.options()).await.unwrap();
    let roles = open(database.options(), Config::default()).await.create_roles().await.unwrap();
    let twin = format!("{}_twin", &database.name()[..24]);
    run(&mut admin, format!("create database \"{twin}\"")).await;

    let other = open(database.options().database(&twin), Config::default()).await;
    let refused = other.create_roles().await.unwrap_err();
    other.close().await;
    run(&mut admin, format!("drop database \"{twin}\" with (force)")).await;

    assert!(matches!(refused, StoreError::Refused { .. }), "{refused:?}");
    let cause = refused.source().map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains(&format!("'annals {} annals'", database.name())), "{cause}");
    assert!(cause.contains("rename this database"), "{cause}");
    drop_all(&mut admin, &roles).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn making_the_roles_behind_a_lock_ends_and_can_be_repeated() {
    let database = database().await;
    let mut admin = PgConnection::connect_with(&database.options()).await.unwrap();
    let store = open(database.options(), Config::default()).await;
    run(&mut admin, "begin; lock table annals.events in access exclusive mode").await;

    let refused = store.create_roles().await.unwrap_err();
    run(&mut admin, "rollback").await;
    let roles = store.create_roles().await.unwrap();

    assert!(refused.is_retryable(), "{refused:?}");
    drop_all(&mut admin, &roles).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_append_of_another_login_is_named_as_hidden_until_the_writer_may_see_it() {
    let database = database().await;
    let mut admin = PgConnection::connect_with(&database.options()).await.unwrap();
    let roles = open(database.options(), Config::default()).await.create_roles().await.unwrap();
    let (writer, options) = login(database.options(), &mut admin, &roles.writer).await;
    let store = open(options, Config::default()).await;
    let mut other = PgConnection::connect_with(&database.options()).await.unwrap();
    run(
        &mut other,
        "set application_name = 'night shift'; begin;
         insert into annals.events (version, event_id, correlation_id, stream, event_type, payload)
         values (1, gen_random_uuid(), gen_random_uuid(), 'a-1', 'A', '{}')",
    )
    .await;

    run(&mut admin, format!("revoke pg_read_all_stats from \"{}\"", roles.writer)).await;
    let hidden = store.holders().await.unwrap();
    let findings = store.doctor().await.unwrap();
    store.create_roles().await.unwrap_err();
    open(database.options(), Config::default()).await.create_roles().await.unwrap();
    let seen = store.holders().await.unwrap();

    let [holder] = &hidden[..] else { panic!("{hidden:?}") };
    assert_eq!((&*holder.application, &*holder.state, &*holder.query), ("night shift", "hidden", ""));
    assert_eq!(holder.age, None);
    let waiting = findings.iter().find(|finding| finding.what.contains("readers wait")).unwrap();
    assert!(waiting.what.contains("night shift") && waiting.what.contains("hidden"), "{waiting:?}");
    assert!(waiting.cure.contains("grant pg_read_all_stats"), "{waiting:?}");
    assert!(findings.iter().any(|finding| finding.what.contains("sessions of other logins")), "{findings:?}");
    let [holder] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!(holder.state, "idle in transaction");
    assert!(holder.age.is_some(), "{holder:?}");

    run(&mut other, "rollback").await;
    store.close().await;
    drop_roles(&mut admin, &[&writer]).await;
    drop_all(&mut admin, &roles).await;
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
