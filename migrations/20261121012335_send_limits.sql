-- 20261121012335_send_limits.sql
-- What we send is limited a number, and a group of numbers that begin alike, against those who make us write to numbers that pay them.
-- Safe to run again (an edited limit is kept). Locks only new tables. Undo: drop send_limits and apply the functions of before.

create table if not exists public.send_limits (
  prefix text constraint send_limits_pkey primary key,
  number_per_hour integer,
  number_per_day integer,
  group_digits smallint not null default 6,
  group_per_hour integer,
  group_per_day integer,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint send_limits_prefix_is_of_a_number check (prefix ~ '^([+][1-9][0-9]{0,13})?$'),
  constraint send_limits_are_not_negative check (number_per_hour >= 0 and number_per_day >= 0 and group_per_hour >= 0 and group_per_day >= 0),
  constraint send_limits_group_digits_are_of_a_number check (group_digits between 1 and 15)
);
do $$
begin
  perform private.require_columns('public.send_limits', '{
    "prefix": "text", "number_per_hour": "integer", "number_per_day": "integer", "group_digits": "smallint", "group_per_hour": "integer",
    "group_per_day": "integer", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
comment on table public.send_limits is
  'How many messages of ours go out; the row with the longest prefix that a number begins with counts. Null: no limit. 0: none at all.';
comment on column public.send_limits.prefix is 'As a number begins, such as +25078; empty: all that have no row of their own, and people without a number.';
comment on column public.send_limits.number_per_hour is 'Messages to one number in a channel and an hour.';
comment on column public.send_limits.number_per_day is 'The same in a day of UTC.';
comment on column public.send_limits.group_digits is 'Numbers that share so many first digits are one group: 6 are a country and its operator.';
comment on column public.send_limits.group_per_hour is 'SMS to one group in an hour, all clients together.';
comment on column public.send_limits.group_per_day is 'The same in a day of UTC.';
insert into public.send_limits (prefix, number_per_hour, number_per_day, group_per_hour, group_per_day) values
  ('', 120, 300, 300, 1000),
  -- Where our callers are; nobody is paid for an SMS that ends here.
  ('+250', 120, 300, null, null)
on conflict (prefix) do nothing;

create or replace function private.take_send_limits(p_wanted jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_hour timestamptz := date_bin('1 hour', p_now, '2000-01-01 00:00:00+00');
  v_day timestamptz := date_bin('1 day', p_now, '2000-01-01 00:00:00+00');
  v_takes jsonb;
  v_wanted jsonb;
  v_over jsonb;
  v_refused jsonb := '{}';
  v_alerts jsonb := '{}';
begin
  select coalesce(jsonb_agg(jsonb_build_object('id', w.id, 'bucket', b.bucket, 'window', b.start, 'limit', b.most, 'label', b.label)), '[]') into v_takes
    from (
      select x.w ->> 'id' as id, x.w ->> 'channel' as channel,
             -- A wa_id is a number without its plus.
             case when x.w ->> 'number' ~ '^[1-9][0-9]{7,14}$' then '+' || (x.w ->> 'number') else x.w ->> 'number' end as number
        from jsonb_array_elements(p_wanted) x (w)
    ) w
    cross join lateral (
      select l.* from public.send_limits l where starts_with(w.number, l.prefix) order by length(l.prefix) desc limit 1
    ) l
    cross join lateral (
      -- Whose number it is stands in no bucket.
      select 'sent:' || w.channel || ':number:' || left(encode(sha256(convert_to(w.number, 'UTF8')), 'hex'), 32) as number_bucket,
             left(w.number, l.group_digits + 1) as of_group
    ) n
    cross join lateral (values
      (n.number_bucket || ':hour', v_hour, l.number_per_hour, 'number'),
      (n.number_bucket || ':day', v_day, l.number_per_day, 'number'),
      ('sent:sms:group:' || n.of_group || ':hour', v_hour, case when w.channel = 'sms' then l.group_per_hour end, n.of_group),
      ('sent:sms:group:' || n.of_group || ':day', v_day, case when w.channel = 'sms' then l.group_per_day end, n.of_group)
    ) b (bucket, start, most, label)
   where w.number is not null and b.most is not null;
  if v_takes = '[]' then
    return '{"refused": {}, "alerts": {}}';
  end if;
  -- All rows at once and in one order, so that nobody waits in a circle.
  insert into public.rate_limits as r (bucket, window_start, taken)
  select distinct t ->> 'bucket', (t ->> 'window')::timestamptz, 0 from jsonb_array_elements(v_takes) t order by 1, 2
  on conflict (bucket, window_start) do update set taken = r.taken;
  for v_wanted in select w from jsonb_array_elements(p_wanted) with ordinality x (w, n) order by n loop
    select jsonb_object_agg(format('send_limit:%s:%s:%s', v_wanted ->> 'channel', t ->> 'label', t ->> 'window'),
                            jsonb_build_object('channel', v_wanted ->> 'channel', 'of', t ->> 'label', 'since', t ->> 'window', 'limit', t -> 'limit'))
      into v_over
      from jsonb_array_elements(v_takes) t
      join public.rate_limits r on r.bucket = t ->> 'bucket' and r.window_start = (t ->> 'window')::timestamptz
     where t ->> 'id' = v_wanted ->> 'id' and r.taken >= (t ->> 'limit')::integer;
    if v_over is not null and not coalesce((v_wanted ->> 'exempt')::boolean, false) then
      v_refused := v_refused || jsonb_build_object(v_wanted ->> 'id', 'rate_limited');
      v_alerts := v_alerts || v_over;
      continue;
    end if;
    update public.rate_limits r set taken = r.taken + 1
      from jsonb_array_elements(v_takes) t
     where t ->> 'id' = v_wanted ->> 'id' and r.bucket = t ->> 'bucket' and r.window_start = (t ->> 'window')::timestamptz;
  end loop;
  return jsonb_build_object('refused', v_refused, 'alerts', v_alerts);
end
$$;
comment on function private.take_send_limits is
  'Counts each message against the limits of its number and its group, in the order given; {refused: {id: rate_limited}, alerts: {key: facts}}. A message that is refused is not counted. Locks its counters until the end of the transaction.';

create or replace function private.pass_guards(p_wanted jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_wanted jsonb;
  v_limits jsonb;
  v_refused jsonb;
  v_alert record;
begin
  -- What has a permit keeps it: the same claim may ask twice, and a retry is the same message.
  select coalesce(jsonb_agg(w order by n), '[]') into v_wanted
    from jsonb_array_elements(p_wanted) with ordinality x (w, n)
   where coalesce((w ->> 'again')::boolean, false) or not exists (select from public.send_permits s where s.delivery_id = (w ->> 'id')::uuid);
  if v_wanted = '[]' then
    return '{}';
  end if;
  v_limits := private.take_send_limits(v_wanted, p_now);
  v_refused := v_limits -> 'refused';
  select coalesce(jsonb_agg(w order by n), '[]') into v_wanted
    from jsonb_array_elements(v_wanted) with ordinality x (w, n) where not v_refused ? (w ->> 'id');
  v_refused := v_refused || private.reserve_budget(v_wanted, p_now);
  -- Those whose client has no budget: a permit is what keeps them from being counted twice.
  insert into public.send_permits (delivery_id, client_id, created_at)
  select (w ->> 'id')::uuid, (w ->> 'client_id')::uuid, p_now from jsonb_array_elements(v_wanted) w where not v_refused ? (w ->> 'id')
  on conflict (delivery_id) do nothing;
  -- A few old ones go with each that comes: past the deadlines of their messages, or when no provider changes a price any more.
  delete from public.send_permits where delivery_id in (
    select s.delivery_id from public.send_permits s
     where s.month is null and s.created_at < p_now - interval '3 days' order by s.created_at limit 5 for update skip locked);
  delete from public.send_permits where delivery_id in (
    select s.delivery_id from public.send_permits s
     where s.month is not null and s.created_at < p_now - interval '62 days' order by s.created_at limit 5 for update skip locked);
  -- Last: an alert is locked until the end as well.
  for v_alert in select a.key, a.value from jsonb_each(v_limits -> 'alerts') a order by a.key loop
    perform private.raise_alert('send_limit', 'warning', v_alert.key,
      'More messages were to be sent than send_limits allows; they were not: a flood, or a limit that is too low?', v_alert.value);
  end loop;
  return v_refused;
end
$$;
create index if not exists idx_send_permits_uncharged on public.send_permits (created_at) where month is null;
create index if not exists idx_send_permits_charged on public.send_permits (created_at) where month is not null;
comment on column public.rate_limits.bucket is
  'What is limited, such as sms_inbound:<profile id>, or sent:<channel>:number:<hash>:hour and sent:sms:group:<prefix>:day of what we send.';

drop trigger if exists send_limits_touch on public.send_limits;
create trigger send_limits_touch before update on public.send_limits for each row execute function private.touch_updated_at();
alter table public.send_limits enable row level security;
drop policy if exists send_limits_select on public.send_limits;
create policy send_limits_select on public.send_limits for select to authenticated using (false);
revoke all on public.send_limits from public, anon, authenticated;
grant select, insert, update, delete on public.send_limits to service_role;
revoke execute on function private.take_send_limits(jsonb, timestamptz), private.pass_guards(jsonb, timestamptz) from public, anon, authenticated;
grant execute on function private.take_send_limits(jsonb, timestamptz), private.pass_guards(jsonb, timestamptz) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012335'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
