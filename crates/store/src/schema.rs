//! Table definitions for diesel. `migrations/` defines the actual schema.

use diesel::{allow_tables_to_appear_in_same_query, table};

table! {
    use diesel::sql_types::{Nullable, Text};
    use crate::columns::{Id, Moment};

    organizations (id) {
        id -> Id,
        name -> Text,
        created_at -> Moment,
    }
}

table! {
    use diesel::sql_types::{Binary, Nullable, Text};
    use crate::columns::{Id, Moment};

    api_tokens (id) {
        id -> Id,
        org_id -> Id,
        token_sha256 -> Binary,
        scopes -> Nullable<Text>,
        label -> Nullable<Text>,
        created_at -> Moment,
        expires_at -> Nullable<Moment>,
        revoked_at -> Nullable<Moment>,
    }
}

table! {
    use diesel::sql_types::{Binary, Bool, Nullable, Text};
    use crate::columns::{Id, Moment};

    signing_secrets (id) {
        id -> Id,
        org_id -> Id,
        key_prefix -> Text,
        key_id -> Text,
        sealed -> Binary,
        is_current -> Bool,
        label -> Nullable<Text>,
        disabled_at -> Nullable<Moment>,
        last_used_at -> Nullable<Moment>,
        created_at -> Moment,
        updated_at -> Moment,
        demoted_at -> Nullable<Moment>,
    }
}

table! {
    use diesel::sql_types::{BigInt, Nullable, Text};
    use crate::columns::{Id, Moment};

    runs (org_id, id) {
        org_id -> Id,
        id -> Id,
        status_code -> Text,
        output -> Nullable<Text>,
        duration_ms -> Nullable<BigInt>,
        created_at -> Moment,
        started_at -> Nullable<Moment>,
        completed_at -> Nullable<Moment>,
        callback_url -> Nullable<Text>,
        metadata -> Nullable<Text>,
        failure_code -> Nullable<Text>,
        failure_message -> Nullable<Text>,
        failure_stage_code -> Nullable<Text>,
        updated_at -> Moment,
        erased_at -> Nullable<Moment>,
    }
}

table! {
    use diesel::sql_types::{BigInt, Binary, Integer, Nullable, Text};
    use crate::columns::Id;

    // The table has no primary key; diesel requires one.
    erased_parts (run_id) {
        org_id -> Id,
        run_id -> Id,
        delivery_id -> Nullable<Id>,
        attempt_number -> Nullable<Integer>,
        part -> Text,
        sha256 -> Binary,
        size -> BigInt,
    }
}

table! {
    use diesel::sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text};
    use crate::columns::{Id, Moment};

    deliveries (id) {
        id -> Id,
        org_id -> Id,
        run_id -> Id,
        callback_url -> Text,
        payload -> Binary,
        signing_secret_id -> Nullable<Id>,
        is_automatic -> Bool,
        max_attempts -> Integer,
        request_id -> Text,
        created_at -> Moment,
    }
}

table! {
    use diesel::sql_types::{BigInt, Bool, Integer, Nullable, Text};
    use crate::columns::{Id, Moment};

    open_deliveries (id) {
        id -> Id,
        org_id -> Id,
        run_id -> Id,
        destination -> BigInt,
        callback_host -> Text,
        is_automatic -> Bool,
        payload_bytes -> Integer,
        max_attempts -> Integer,
        attempt_count -> Integer,
        failure_reason_code -> Nullable<Text>,
        failure_detail -> Nullable<Text>,
        next_attempt_at -> Nullable<Moment>,
        wake_at -> Moment,
        claim_id -> Nullable<Id>,
        claimed_at -> Nullable<Moment>,
        created_at -> Moment,
        updated_at -> Moment,
    }
}

table! {
    use diesel::sql_types::{Bool, Integer, Nullable, Text};
    use crate::columns::{Id, Moment};

    ended_deliveries (id) {
        id -> Id,
        org_id -> Id,
        callback_host -> Text,
        is_automatic -> Bool,
        status_code -> Text,
        failure_reason_code -> Nullable<Text>,
        failure_detail -> Nullable<Text>,
        attempt_count -> Integer,
        created_at -> Moment,
        completed_at -> Moment,
    }
}

table! {
    use diesel::sql_types::{BigInt, Binary, Bool, Integer, Nullable, Text};
    use crate::columns::{Id, Moment};

    // A view that joins the three tables above.
    delivery_states (id) {
        id -> Id,
        org_id -> Id,
        run_id -> Id,
        callback_url -> Text,
        callback_host -> Text,
        destination -> Nullable<BigInt>,
        payload -> Binary,
        signing_secret_id -> Nullable<Id>,
        is_automatic -> Bool,
        status_code -> Text,
        failure_reason_code -> Nullable<Text>,
        failure_detail -> Nullable<Text>,
        attempt_count -> Integer,
        max_attempts -> Integer,
        next_attempt_at -> Nullable<Moment>,
        created_at -> Moment,
        updated_at -> Moment,
        completed_at -> Nullable<Moment>,
    }
}

table! {
    use diesel::sql_types::{BigInt, Nullable};
    use crate::columns::{Id, Moment};

    destinations (destination) {
        destination -> BigInt,
        org_id -> Id,
        held_until -> Moment,
        probing_until -> Nullable<Moment>,
        probe_claim_id -> Nullable<Id>,
        created_at -> Moment,
        updated_at -> Moment,
    }
}

table! {
    use diesel::sql_types::{BigInt, Integer, Nullable, Text};
    use crate::columns::{Id, Moment};

    attempts (delivery_id, attempt_number) {
        id -> Id,
        delivery_id -> Id,
        attempt_number -> Integer,
        status_code -> Nullable<Integer>,
        response_body -> Nullable<Text>,
        response_time_ms -> Nullable<BigInt>,
        failure_reason_code -> Nullable<Text>,
        failure_detail -> Nullable<Text>,
        created_at -> Moment,
        resolve_ms -> Nullable<Integer>,
        connect_ms -> Nullable<Integer>,
        tls_ms -> Nullable<Integer>,
        send_ms -> Nullable<Integer>,
        wait_ms -> Nullable<Integer>,
        body_ms -> Nullable<Integer>,
        remote_address -> Nullable<Text>,
        content_type -> Nullable<Text>,
        response_headers -> Nullable<Text>,
    }
}

table! {
    use diesel::sql_types::{Binary, Nullable, Text};
    use crate::columns::{Id, Moment};

    idempotency_keys (org_id, idempotency_key) {
        org_id -> Id,
        idempotency_key -> Text,
        request_sha256 -> Binary,
        made_id -> Id,
        answer -> Nullable<Text>,
        created_at -> Moment,
    }
}

allow_tables_to_appear_in_same_query!(
    organizations,
    api_tokens,
    signing_secrets,
    runs,
    deliveries,
    open_deliveries,
    ended_deliveries,
    delivery_states,
    destinations,
    attempts,
    erased_parts
);
