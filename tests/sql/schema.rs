//! The whole schema as text, compared with the stored one: a change of shape, of a right or of a policy is seen in review.

use std::fmt::Write as _;

use tokio_postgres::Client;

use crate::support::{Db, check_snapshot, lines};

#[tokio::test]
async fn the_schema_is_the_stored_one() {
    let db = Db::new().await;
    check_snapshot("schema.snap", &dump(&db.admin).await);
}

/// Everything in `public` and `private` that our migrations make.
pub async fn dump(client: &Client) -> String {
    // Names of other schemas are printed in full.
    client.batch_execute("set search_path = ''").await.unwrap();
    let mut text = String::new();
    for (title, sql) in SECTIONS {
        let _ = writeln!(text, "# {title}");
        for line in lines(client, sql).await {
            text.push_str(&line);
            text.push('\n');
        }
    }
    client.batch_execute("reset search_path").await.unwrap();
    text
}

const SECTIONS: [(&str, &str); 4] =
    [("schemas", SCHEMAS), ("tables and views", RELATIONS), ("sequences", SEQUENCES), ("functions", FUNCTIONS)];

const SCHEMAS: &str = "
select format('%s: usage for %s%s', n.nspname,
         coalesce((select string_agg(distinct case a.grantee when 0 then 'public' else a.grantee::regrole::text end, ', ')
                     from aclexplode(n.nspacl) a where a.grantee <> n.nspowner and a.privilege_type = 'USAGE'), 'nobody'),
         case when d.description is null and n.nspname <> 'public' then '; no comment' else '' end)
  from pg_catalog.pg_namespace n
  left join pg_catalog.pg_description d on d.objoid = n.oid and d.classoid = 'pg_catalog.pg_namespace'::regclass
 where n.nspname in ('public', 'private')
 order by n.nspname collate \"C\"";

const RELATIONS: &str = "
with relation as (
  select format('%I.%I', n.nspname, c.relname) as name, c.*
    from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
   where n.nspname in ('public', 'private') and c.relkind in ('r', 'p', 'v', 'm', 'f')
), line (relation, section, place, text) as (
  select r.name, 0, '', format('%s %s%s%s%s',
           case r.relkind when 'r' then 'table' when 'p' then 'partitioned table' when 'v' then 'view' when 'm' then 'materialized view' else 'foreign table' end,
           r.name, case when r.relrowsecurity then '' else ' without row security' end,
           coalesce(' (' || array_to_string(r.reloptions, ', ') || ')', ''),
           case when obj_description(r.oid, 'pg_class') is null then ' without comment' else '' end)
    from relation r
  union all
  select r.name, 1, lpad(a.attnum::text, 4, '0'), format('  column %s %s%s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
           case when a.attnotnull then ' not null' else '' end,
           case when a.attgenerated = 's' then ' generated as ' || pg_get_expr(d.adbin, d.adrelid) else coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), '') end,
           case a.attidentity when 'a' then ' identity always' when 'd' then ' identity by default' else '' end,
           case when col_description(r.oid, a.attnum) is null then '' else ' -- commented' end)
    from relation r
    join pg_catalog.pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
    left join pg_catalog.pg_attrdef d on d.adrelid = r.oid and d.adnum = a.attnum
  union all
  select r.name, 2, c.conname, format('  constraint %s %s', c.conname, pg_get_constraintdef(c.oid))
    from relation r join pg_catalog.pg_constraint c on c.conrelid = r.oid and c.contype <> 'n'
  union all
  select r.name, 3, i.relname, '  ' || regexp_replace(pg_get_indexdef(i.oid), '^CREATE (UNIQUE )?INDEX (.*) ON [^ ]+ USING ', '\\1index \\2 ')
    from relation r
    join pg_catalog.pg_index x on x.indrelid = r.oid
    join pg_catalog.pg_class i on i.oid = x.indexrelid
   where not exists (select from pg_catalog.pg_constraint c where c.conindid = i.oid and c.contype in ('p', 'u', 'x'))
  union all
  select r.name, 4, p.polname, format('  policy %s %s for %s to %s%s%s', p.polname, case when p.polpermissive then 'permissive' else 'restrictive' end,
           case p.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
           (select string_agg(case o when 0 then 'public' else o::regrole::text end, ', ') from unnest(p.polroles) o),
           coalesce(' using ' || regexp_replace(pg_get_expr(p.polqual, p.polrelid), '\\s+', ' ', 'g'), ''),
           coalesce(' check ' || regexp_replace(pg_get_expr(p.polwithcheck, p.polrelid), '\\s+', ' ', 'g'), ''))
    from relation r join pg_catalog.pg_policy p on p.polrelid = r.oid
  union all
  select r.name, 5, t.tgname, '  ' || regexp_replace(pg_get_triggerdef(t.oid), '^CREATE TRIGGER', 'trigger')
    from relation r join pg_catalog.pg_trigger t on t.tgrelid = r.oid and not t.tgisinternal
  union all
  select r.name, 6, g.grantee || ' ' || g.place, format('  grant to %s: %s%s', g.grantee, g.verbs, g.place)
    from relation r
    cross join lateral (
      select case a.grantee when 0 then 'public' else a.grantee::regrole::text end as grantee, '' as place,
             string_agg(lower(a.privilege_type), ', ' order by a.privilege_type) as verbs
        from aclexplode(r.relacl) a where a.grantee <> r.relowner group by 1
      union all
      select case a.grantee when 0 then 'public' else a.grantee::regrole::text end, format(' (%s)', c.attname),
             string_agg(lower(a.privilege_type), ', ' order by a.privilege_type)
        from pg_catalog.pg_attribute c cross join lateral aclexplode(c.attacl) a where c.attrelid = r.oid group by 1, 2
    ) g
)
select text from line order by relation collate \"C\", section, place collate \"C\", text collate \"C\"";

const SEQUENCES: &str = "
select format('%I.%I: %s', n.nspname, c.relname,
         coalesce((select string_agg(format('%s to %s', lower(a.privilege_type), case a.grantee when 0 then 'public' else a.grantee::regrole::text end), ', '
                            order by a.grantee::text, a.privilege_type)
                     from aclexplode(c.relacl) a where a.grantee <> c.relowner), 'nobody'))
  from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
 where n.nspname in ('public', 'private') and c.relkind = 'S'
 order by n.nspname collate \"C\", c.relname collate \"C\"";

const FUNCTIONS: &str = "
select format('%I.%I(%s) returns %s: %s%s, %s; for %s%s', n.nspname, p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
         case p.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end,
         case when p.prosecdef then ', security definer' else '' end,
         coalesce(array_to_string(p.proconfig, ', '), 'no settings'),
         coalesce((select string_agg(case a.grantee when 0 then 'public' else a.grantee::regrole::text end, ', ' order by a.grantee::regrole::text)
                     from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee <> p.proowner), 'nobody'),
         case when obj_description(p.oid, 'pg_proc') is null then '; no comment' else '' end)
  from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
 where n.nspname in ('public', 'private')
 order by n.nspname collate \"C\", p.proname collate \"C\", pg_get_function_identity_arguments(p.oid) collate \"C\"";
