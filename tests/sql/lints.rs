//! What must never be in the schema, asked of the catalogue: the advisors that Supabase runs, and our own rules.
//!
//! Each lint is a query for offenders and, so that we know that it can find one, a statement that makes one.

use crate::support::{Db, lines};

/// Name, what is wrong, query for offenders, and a statement that makes one.
struct Lint {
    name: &'static str,
    wrong: &'static str,
    sql: &'static str,
    offence: &'static str,
}

#[tokio::test]
async fn the_schema_has_no_offenders() {
    let db = Db::new().await;
    let mut found = Vec::new();
    for lint in LINTS {
        for offender in lines(&db.admin, lint.sql).await {
            found.push(format!("{}: {offender} {}", lint.name, lint.wrong));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[tokio::test]
async fn every_lint_sees_an_offence() {
    let db = Db::new().await;
    let mut blind = Vec::new();
    for lint in LINTS {
        db.run("begin").await;
        let before = lines(&db.admin, lint.sql).await;
        db.run(lint.offence).await;
        if lines(&db.admin, lint.sql).await.len() <= before.len() {
            blind.push(lint.name);
        }
        db.run("rollback").await;
    }
    assert!(blind.is_empty(), "these do not see what they are for: {}", blind.join(", "));
}

const LINTS: &[Lint] = &[
    Lint {
        name: "rls_disabled",
        wrong: "has no row level security",
        sql: "select c.oid::regclass::text from pg_class c where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace)
                and c.relkind in ('r', 'p') and not c.relrowsecurity",
        offence: "create table public.offence (id uuid)",
    },
    Lint {
        name: "rls_without_policy",
        wrong: "has row level security and no policy: say `using (false)` when nobody is meant",
        sql: "select c.oid::regclass::text from pg_class c where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace)
                and c.relrowsecurity and not exists (select from pg_policy p where p.polrelid = c.oid)",
        offence: "create table public.offence (id uuid); alter table public.offence enable row level security",
    },
    Lint {
        name: "policy_calls_auth_per_row",
        wrong: "calls auth.* or current_setting for every row: write (select auth.uid())",
        sql: "select format('%s on %s', p.polname, p.polrelid::regclass) from pg_policy p,
                lateral (select coalesce(pg_get_expr(p.polqual, p.polrelid), '') || ' ' || coalesce(pg_get_expr(p.polwithcheck, p.polrelid), '') as text) e
              where regexp_replace(e.text, '\\( *SELECT (auth\\.\\w+|current_setting)\\(', '', 'gi') ~* '(auth\\.(uid|jwt|role|email)|current_setting)\\('",
        offence: "create policy offence on public.profiles for select to authenticated using (user_id = auth.uid())",
    },
    Lint {
        name: "policy_trusts_user_metadata",
        wrong: "believes what users write themselves",
        sql: "select format('%s on %s', p.polname, p.polrelid::regclass) from pg_policy p
               where concat(pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid)) ilike '%user_metadata%'",
        offence: "create policy offence on public.profiles for select to authenticated
                    using ((select auth.jwt()) -> 'user_metadata' ->> 'admin' = 'true')",
    },
    Lint {
        name: "policy_for_all_verbs",
        wrong: "is not for one verb",
        sql: "select format('%s on %s', p.polname, p.polrelid::regclass) from pg_policy p where p.polcmd = '*'",
        offence: "create policy offence on public.profiles to authenticated using (false)",
    },
    Lint {
        name: "policy_for_public",
        wrong: "is not to a role: write `to authenticated`",
        sql: "select format('%s on %s', p.polname, p.polrelid::regclass) from pg_policy p where p.polroles = array[0::oid]",
        offence: "create policy offence on public.profiles for select using (false)",
    },
    Lint {
        name: "policy_always_true",
        wrong: "lets everybody",
        sql: "select format('%s on %s', p.polname, p.polrelid::regclass) from pg_policy p
               where pg_get_expr(p.polqual, p.polrelid) = 'true' or pg_get_expr(p.polwithcheck, p.polrelid) = 'true'",
        offence: "create policy offence on public.profiles for select to authenticated using (true)",
    },
    Lint {
        name: "several_permissive_policies",
        wrong: "has more than one permissive policy for a verb and role: each is evaluated",
        sql: "select format('%s for %s', p.polrelid::regclass, p.polcmd) from pg_policy p, unnest(p.polroles) o
               where p.polpermissive group by p.polrelid, p.polcmd, o having count(*) > 1",
        offence: "create policy offence on public.profiles for select to authenticated using (false)",
    },
    Lint {
        name: "right_of_users_to_write",
        wrong: "is more than a user needs: they read, and write through functions",
        sql: "select format('%s on %s for %s', a.privilege_type, c.oid::regclass, case a.grantee when 0 then 'public' else a.grantee::regrole::text end)
                from pg_class c, aclexplode(c.relacl) a
               where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace) and c.relkind <> 'S'
                 and (a.grantee = 0 or a.grantee in ('anon'::regrole, 'authenticated'::regrole))
                 and not (a.grantee = 'authenticated'::regrole and a.privilege_type = 'SELECT')",
        offence: "grant insert on public.profiles to authenticated",
    },
    Lint {
        name: "right_without_use",
        wrong: "is not for a program: select, insert, update and delete are",
        sql: "select format('%s on %s for %s', a.privilege_type, c.oid::regclass, a.grantee::regrole)
                from pg_class c, aclexplode(c.relacl) a
               where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace) and c.relkind <> 'S' and a.grantee = 'service_role'::regrole
                 and a.privilege_type not in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')",
        offence: "grant truncate on public.profiles to service_role",
    },
    Lint {
        name: "sequence_of_users",
        wrong: "may be used by users",
        sql: "select c.oid::regclass::text from pg_class c, aclexplode(c.relacl) a
               where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace) and c.relkind = 'S'
                 and (a.grantee = 0 or a.grantee in ('anon'::regrole, 'authenticated'::regrole))",
        offence: "grant usage on sequence public.conversation_messages_seq_seq to authenticated",
    },
    Lint {
        name: "function_of_everybody",
        wrong: "may be executed by public, anon or authenticated: revoke it, Postgres grants it to public by default",
        sql: "select p.oid::regprocedure::text from pg_proc p
               where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace)
                 and exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                              where a.grantee in (0, 'anon'::regrole, 'authenticated'::regrole)
                                and not (a.grantee = 'authenticated'::regrole
                                  and p.oid in ('private.my_client_ids()'::regprocedure, 'private.my_agent_type_ids()'::regprocedure, 'private.my_profile_ids()'::regprocedure,
                                    -- What reads for somebody signed in, with their rights.
                                    'private.uuid_or_null(text)'::regprocedure, 'private.percent_of(numeric, numeric)'::regprocedure,
                                    'private.change_since(numeric, numeric)'::regprocedure,
                                    'private.recount_sms(uuid[], timestamptz, timestamptz)'::regprocedure,
                                    'private.sms_sums(uuid[], timestamptz, timestamptz)'::regprocedure,
                                    'private.sms_pieces(timestamptz, timestamptz)'::regprocedure,
                                    'private.sms_figures(public.agent_sms_changes[], timestamptz, timestamptz)'::regprocedure,
                                    'public.get_sms_metrics(timestamptz, timestamptz, uuid, text, text)'::regprocedure)))",
        offence: "create function public.offence() returns integer language sql as 'select 1'",
    },
    Lint {
        name: "function_without_search_path",
        wrong: "does not set search_path = ''",
        sql: "select p.oid::regprocedure::text from pg_proc p
               where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace) and p.prokind in ('f', 'p')
                 and not coalesce(p.proconfig, '{}') @> array['search_path=\"\"']",
        offence: "create function private.offence() returns integer language sql set search_path = public as 'select 1'",
    },
    Lint {
        name: "security_definer_without_reason",
        wrong: "runs with its owner's rights and its comment does not say why (`Security definer: ...`)",
        sql: "select p.oid::regprocedure::text from pg_proc p
               where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace) and p.prosecdef
                 and coalesce(obj_description(p.oid, 'pg_proc'), '') !~ 'Security definer: \\w+'",
        offence: "create function private.offence() returns integer language sql security definer set search_path = '' as 'select 1'",
    },
    Lint {
        name: "security_definer_over_http",
        wrong: "runs with its owner's rights in the schema that PostgREST exposes",
        sql: "select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'public'::regnamespace and p.prosecdef",
        offence: "create function public.offence() returns integer language sql security definer set search_path = '' as 'select 1'",
    },
    Lint {
        name: "overloaded_rpc",
        wrong: "exists more than once: PostgREST must guess which is meant",
        sql: "select p.proname::text from pg_proc p where p.pronamespace = 'public'::regnamespace group by 1 having count(*) > 1",
        offence: "create function public.sweep() returns integer language sql as 'select 1'",
    },
    Lint {
        name: "view_with_its_owners_rights",
        wrong: "is not security_invoker",
        sql: "select c.oid::regclass::text from pg_class c
               where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace) and c.relkind = 'v'
                 and not coalesce(c.reloptions, '{}') && array['security_invoker=true', 'security_invoker=on']",
        offence: "create view public.offence as select 1 as one",
    },
    Lint {
        name: "relation_without_row_security",
        wrong: "is a materialized view or foreign table: row level security does not exist for it",
        sql: "select c.oid::regclass::text from pg_class c
               where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace) and c.relkind in ('m', 'f')",
        offence: "create materialized view public.offence as select 1 as one",
    },
    Lint {
        name: "extension_in_public",
        wrong: "is installed in public",
        sql: "select extname::text from pg_extension where extnamespace = 'public'::regnamespace",
        offence: "alter extension pgcrypto set schema public",
    },
    Lint {
        name: "no_primary_key",
        wrong: "has no primary key",
        sql: "select c.oid::regclass::text from pg_class c
               where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace) and c.relkind in ('r', 'p')
                 and not exists (select from pg_constraint k where k.conrelid = c.oid and k.contype = 'p')",
        offence: "create table private.offence (id uuid)",
    },
    Lint {
        name: "foreign_key_without_index",
        wrong: "is not the beginning of any index: deleting what it refers to reads the whole table",
        sql: "select format('%s on %s', k.conname, k.conrelid::regclass) from pg_constraint k
               where k.contype = 'f' and k.connamespace in ('public'::regnamespace, 'private'::regnamespace)
                 and not exists (
                   select from pg_index i where i.indrelid = k.conrelid and i.indisvalid
                      and (string_to_array(i.indkey::text, ' ')::smallint[])[1 : cardinality(k.conkey)] <@ k.conkey
                      and k.conkey <@ (string_to_array(i.indkey::text, ' ')::smallint[])[1 : cardinality(k.conkey)]
                      -- A partial index serves when it leaves out nothing but nulls.
                      and (i.indpred is null or pg_get_expr(i.indpred, i.indrelid) = (
                        select format('(%I IS NOT NULL)', a.attname) from pg_attribute a where a.attrelid = k.conrelid and a.attnum = k.conkey[1])))",
        offence: "alter table public.jobs add column offence uuid constraint offence_fkey references public.clients (id)",
    },
    Lint {
        name: "policy_column_without_index",
        wrong: "is filtered by in a policy and not the beginning of any index",
        sql: "select format('%s.%s', c.oid::regclass, a.attname) from pg_class c join pg_attribute a on a.attrelid = c.oid
               where c.relnamespace = 'public'::regnamespace and a.attname in ('client_id', 'profile_id', 'user_id') and not a.attisdropped
                 and c.relkind = 'r'
                 and exists (select from pg_policy p where p.polrelid = c.oid and pg_get_expr(p.polqual, p.polrelid) ~ ('\\m' || a.attname || '\\M'))
                 and not exists (select from pg_index i where i.indrelid = c.oid and i.indkey[0] = a.attnum)",
        offence: "drop index public.idx_client_members_user",
    },
    Lint {
        name: "index_twice",
        wrong: "is the same index as another",
        sql: "select i.indexrelid::regclass::text from pg_index i
               where exists (select from pg_index o where o.indrelid = i.indrelid and o.indexrelid < i.indexrelid and o.indkey = i.indkey
                  and o.indclass = i.indclass and o.indoption = i.indoption and o.indisunique = i.indisunique
                  and o.indpred::text is not distinct from i.indpred::text and o.indexprs::text is not distinct from i.indexprs::text)
                 and i.indrelid in (select oid from pg_class where relnamespace = 'public'::regnamespace)",
        offence: "create index offence on public.client_members (user_id)",
    },
    Lint {
        name: "constraint_with_a_made_up_name",
        wrong: "has the name Postgres makes up, which does not read as the rule",
        sql: "select format('%s on %s', conname, conrelid::regclass) from pg_constraint
               where connamespace = 'public'::regnamespace and contype = 'c' and conname ~ '_check\\d*$'",
        offence: "alter table public.jobs add check (leases >= 0)",
    },
    Lint {
        name: "constraint_not_validated",
        wrong: "is not validated although the table was empty",
        sql: "select format('%s on %s', conname, conrelid::regclass) from pg_constraint
               where connamespace in ('public'::regnamespace, 'private'::regnamespace) and not convalidated",
        offence: "alter table public.jobs add constraint jobs_leases_are_positive check (leases >= 0) not valid",
    },
    Lint {
        name: "time_without_zone",
        wrong: "is a time without zone",
        sql: "select format('%s.%s', c.oid::regclass, a.attname) from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
               where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and a.atttypid in ('timestamp'::regtype, 'time'::regtype, 'timetz'::regtype)",
        offence: "alter table public.jobs add column offence timestamp",
    },
    Lint {
        name: "money_in_floats",
        wrong: "is a floating-point number: money is numeric(12,6) with a currency, a length of time an integer",
        sql: "select format('%s.%s', c.oid::regclass, a.attname) from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
               where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and a.atttypid in ('float4'::regtype, 'float8'::regtype, 'money'::regtype)",
        offence: "alter table public.jobs add column offence float8",
    },
    Lint {
        name: "enumeration_type",
        wrong: "is an enum type: text with a named check is easier to extend",
        sql: "select t.oid::regtype::text from pg_type t where t.typnamespace in ('public'::regnamespace, 'private'::regnamespace) and t.typtype = 'e'",
        offence: "create type public.offence as enum ('one')",
    },
    Lint {
        name: "no_created_at",
        wrong: "has no created_at",
        sql: "select c.oid::regclass::text from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
                and not exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'created_at' and a.attnotnull and a.atthasdef)",
        offence: "create table public.offence (id uuid)",
    },
    Lint {
        name: "updated_at_not_kept",
        wrong: "has updated_at and no trigger that keeps it",
        sql: "select c.oid::regclass::text from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'updated_at'
               where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
                 and not exists (select from pg_trigger t where t.tgrelid = c.oid and t.tgfoid = 'private.touch_updated_at()'::regprocedure and t.tgenabled = 'O')",
        offence: "drop trigger jobs_touch on public.jobs",
    },
    Lint {
        name: "no_comment",
        wrong: "has no comment",
        sql: "select c.oid::regclass::text from pg_class c where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace)
                and c.relkind in ('r', 'p', 'v', 'm', 'f') and obj_description(c.oid, 'pg_class') is null
              union all
              select p.oid::regprocedure::text from pg_proc p where p.pronamespace in ('public'::regnamespace, 'private'::regnamespace)
                and obj_description(p.oid, 'pg_proc') is null",
        offence: "create function private.offence() returns integer language sql as 'select 1'",
    },
    Lint {
        name: "column_without_comment",
        wrong: "has no comment, and its name alone does not say what it holds (if it does, add it to the list in lints.rs)",
        sql: COLUMNS,
        offence: "alter table public.jobs add column offence jsonb",
    },
    Lint {
        name: "twilio",
        wrong: "is named after a trunk we do not have",
        sql: "select format('%s.%s', c.oid::regclass, a.attname) from pg_class c join pg_attribute a on a.attrelid = c.oid
               where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace) and a.attname ~* 'twilio'",
        offence: "alter table public.voice_calls add column twilio_call_sid text",
    },
];

/// A column needs a comment unless its name says all: an id or foreign key, "<something happened>_at", or one of these.
/// JSON, arrays and numbers without a unit in their name need one always.
const COLUMNS: &str = "
select format('%s.%s', c.oid::regclass, a.attname) from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
 where c.relnamespace in ('public'::regnamespace, 'private'::regnamespace) and c.relkind in ('r', 'p', 'v')
   and col_description(c.oid, a.attnum) is null
   and not exists (select from pg_constraint k where k.conrelid = c.oid and k.contype = 'f' and k.conkey = array[a.attnum])
   and a.attname not in ('id', 'client_id', 'user_id', 'correlation_id', 'provider', 'provider_message_id', 'channel', 'direction', 'role',
     'recipient', 'sender', 'content', 'text', 'headline', 'next_step', 'language', 'locale', 'default_locale', 'model', 'status', 'severity',
     'name', 'display_name', 'slug', 'is_active', 'queue', 'occurrences', 'error_code', 'error_class', 'http_status', 'attempt', 'attempts',
     'seq', 'taken', 'cost_currency', 'from_number', 'to_number', 'duration_seconds', 'duration_ms')
   and (a.attname !~ '_at$' or a.attname = 'next_attempt_at' or a.attname = 'deadline_at' or a.attname = 'swept_at')
   and a.attname <> 'window_start'
 order by 1";
