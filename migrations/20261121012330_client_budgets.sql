-- 20261121012330_client_budgets.sql
-- A budget per client and month: an alert at the soft limit, nothing more that costs at the hard one, also when many send at once.
-- Safe to run again. Locks message_delivery_log, call_notifications and conversation_turns briefly (a trigger each).
-- Undo: drop the three triggers and the tables, and apply the functions of before.

create or replace function private.is_time_zone(p_zone text) returns boolean
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  perform timestamptz 'epoch' at time zone p_zone;
  return p_zone is not null;
exception when invalid_parameter_value then
  return false;
end
$$;
comment on function private.is_time_zone is 'Whether Postgres knows this zone, such as Africa/Kigali. For constraints; zones come and go only with its own updates.';

create table if not exists public.client_budgets (
  client_id uuid constraint client_budgets_pkey primary key constraint client_budgets_client_id_fkey references public.clients (id) on delete cascade,
  currency char(3) not null,
  soft_limit numeric(14,6),
  hard_limit numeric(14,6),
  sms_segment_price numeric(12,6) not null,
  whatsapp_template_price numeric(12,6) not null,
  whatsapp_text_price numeric(12,6) not null default 0,
  time_zone text not null default 'Africa/Kigali',
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint client_budgets_currency_is_iso_4217 check (currency ~ '^[A-Z]{3}$'),
  constraint client_budgets_limits_are_not_negative check (soft_limit >= 0 and hard_limit >= 0),
  constraint client_budgets_soft_is_below_hard check (soft_limit <= hard_limit),
  constraint client_budgets_prices_are_not_negative check (sms_segment_price >= 0 and whatsapp_template_price >= 0 and whatsapp_text_price >= 0),
  -- A limit without a price would never be reached.
  constraint client_budgets_hard_limit_needs_prices check (hard_limit is null or (sms_segment_price > 0 and whatsapp_template_price > 0)),
  constraint client_budgets_time_zone_is_known check (private.is_time_zone(time_zone))
);
do $$
begin
  perform private.require_columns('public.client_budgets', '{
    "client_id": "uuid", "currency": "character(3)", "soft_limit": "numeric(14,6)", "hard_limit": "numeric(14,6)",
    "sms_segment_price": "numeric(12,6)", "whatsapp_template_price": "numeric(12,6)", "whatsapp_text_price": "numeric(12,6)",
    "time_zone": "text", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
comment on table public.client_budgets is 'What a client may spend on messages in a month, and what they are expected to cost. No row: no limit.';
comment on column public.client_budgets.currency is 'ISO 4217, of all amounts of the row. Costs that a provider reports in another one are not converted: the price here counts.';
comment on column public.client_budgets.soft_limit is 'Beyond it an alert is raised, once a month. Null: none.';
comment on column public.client_budgets.hard_limit is 'A message that would go beyond it is suppressed with reason budget. Null: none.';
comment on column public.client_budgets.sms_segment_price is 'Of one billed SMS segment, until the provider says otherwise.';
comment on column public.client_budgets.whatsapp_template_price is 'Of one WhatsApp template, until Meta says otherwise.';
comment on column public.client_budgets.whatsapp_text_price is 'Of one WhatsApp text within the service window, which Meta does not charge for.';
comment on column public.client_budgets.time_zone is 'Where its months begin.';

create table if not exists public.budget_months (
  client_id uuid not null constraint budget_months_client_id_fkey references public.clients (id) on delete cascade,
  month date not null,
  currency char(3) not null,
  committed numeric(14,6) not null default 0,
  soft_alerted_at timestamptz,
  hard_alerted_at timestamptz,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  constraint budget_months_pkey primary key (client_id, month, currency),
  constraint budget_months_month_is_first_day check (extract(day from month) = 1)
);
do $$
begin
  perform private.require_columns('public.budget_months', '{
    "client_id": "uuid", "month": "date", "currency": "character(3)", "committed": "numeric(14,6)",
    "soft_alerted_at": "timestamp with time zone", "hard_alerted_at": "timestamp with time zone",
    "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
comment on table public.budget_months is 'What a client has committed in a month. Whoever is about to send locks the row; nobody else does.';
comment on column public.budget_months.month is 'First day of the month, in the client''s zone.';
comment on column public.budget_months.currency is 'Of the budget at that time: a change of currency begins a new count.';
comment on column public.budget_months.committed is 'Reserved and spent, without the changes that wait in budget_changes; v_budget_months adds them.';
comment on column public.budget_months.soft_alerted_at is 'When the soft limit was passed.';
comment on column public.budget_months.hard_alerted_at is 'When the first message was refused.';

create table if not exists public.budget_changes (
  id bigint generated always as identity constraint budget_changes_pkey primary key,
  client_id uuid not null constraint budget_changes_client_id_fkey references public.clients (id) on delete cascade,
  month date not null,
  currency char(3) not null,
  amount numeric(14,6) not null,
  created_at timestamptz not null default now()
);
do $$
begin
  perform private.require_columns('public.budget_changes', '{
    "id": "bigint", "client_id": "uuid", "month": "date", "currency": "character(3)", "amount": "numeric(14,6)",
    "created_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_budget_changes_client on public.budget_changes (client_id, month, currency);
comment on table public.budget_changes is
  'What messages cost more or less than was reserved. Added without a lock, so that recording never waits for sending; the next reservation takes the rows into budget_months.';
comment on column public.budget_changes.month is 'As in budget_months.';
comment on column public.budget_changes.currency is 'As in budget_months.';
comment on column public.budget_changes.amount is 'To be added to committed; negative where less was spent.';

create table if not exists public.send_permits (
  delivery_id uuid constraint send_permits_pkey primary key,
  client_id uuid not null constraint send_permits_client_id_fkey references public.clients (id) on delete cascade,
  month date,
  currency char(3),
  messages smallint not null default 1,
  amount numeric(14,6) not null default 0,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);
do $$
begin
  perform private.require_columns('public.send_permits', '{
    "delivery_id": "uuid", "client_id": "uuid", "month": "date", "currency": "character(3)", "messages": "smallint",
    "amount": "numeric(14,6)", "created_at": "timestamp with time zone", "updated_at": "timestamp with time zone"}');
end
$$;
create index if not exists idx_send_permits_client on public.send_permits (client_id);
comment on table public.send_permits is 'Messages that may be sent: given with the claim, before the message has a row, and taken back where the work ends without it.';
comment on column public.send_permits.delivery_id is 'Of the message-to-be in message_delivery_log.';
comment on column public.send_permits.month is 'Whose budget it counts against; null: the client had none.';
comment on column public.send_permits.currency is 'Of amount; null with month.';
comment on column public.send_permits.messages is 'How often it may have been charged: 2 where an unknown outcome was sent once more.';
comment on column public.send_permits.amount is 'Committed for it: at first the most it can cost, then what it did.';

create or replace view public.v_budget_months with (security_invoker = true) as
  select m.client_id, m.month, m.currency,
         m.committed + coalesce((select sum(c.amount) from public.budget_changes c
                                  where c.client_id = m.client_id and c.month = m.month and c.currency = m.currency), 0) as committed,
         b.soft_limit, b.hard_limit, m.soft_alerted_at, m.hard_alerted_at
    from public.budget_months m
    left join public.client_budgets b on b.client_id = m.client_id and b.currency = m.currency;
comment on view public.v_budget_months is 'What each client has reserved and spent in each month, beside its limits of today.';
comment on column public.v_budget_months.month is 'First day of the month, in the client''s zone.';
comment on column public.v_budget_months.currency is 'ISO 4217, of all amounts of the row.';
comment on column public.v_budget_months.committed is 'Reserved and spent so far.';
comment on column public.v_budget_months.soft_limit is 'As it is today; null: none.';
comment on column public.v_budget_months.hard_limit is 'As it is today; null: none.';

create or replace function private.message_price(p_budget public.client_budgets, p_channel text, p_kind text, p_segments integer) returns numeric
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return case
    when p_channel = 'sms' then p_budget.sms_segment_price * coalesce(p_segments, 1)
    when p_kind = 'text' then p_budget.whatsapp_text_price
    else greatest(p_budget.whatsapp_template_price, p_budget.whatsapp_text_price) end;
end
$$;
comment on function private.message_price is 'What a message is expected to cost. WhatsApp without a kind: the dearer of the two.';

create or replace function private.reserve_budget(p_wanted jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_budget public.client_budgets;
  v_month public.budget_months;
  v_first date;
  v_wanted jsonb;
  v_amount numeric;
  v_folded numeric;
  v_refused jsonb := '{}';
  v_refusing boolean;
begin
  -- One client after the other in the same order everywhere, and nothing but alerts of the same client is locked after it.
  for v_budget in
    select b.* from public.client_budgets b
     where b.client_id in (select (w ->> 'client_id')::uuid from jsonb_array_elements(p_wanted) w)
     order by b.client_id
  loop
    v_first := date_trunc('month', p_now at time zone v_budget.time_zone)::date;
    insert into public.budget_months (client_id, month, currency) values (v_budget.client_id, v_first, v_budget.currency) on conflict do nothing;
    select * into strict v_month from public.budget_months
     where client_id = v_budget.client_id and month = v_first and currency = v_budget.currency for no key update;
    with folded as (
      delete from public.budget_changes where client_id = v_budget.client_id and month = v_first and currency = v_budget.currency returning amount
    )
    select coalesce(sum(f.amount), 0) into v_folded from folded f;
    v_month.committed := v_month.committed + v_folded;
    v_refusing := false;
    for v_wanted in
      select w from jsonb_array_elements(p_wanted) with ordinality x (w, n) where (w ->> 'client_id')::uuid = v_budget.client_id order by n
    loop
      v_amount := private.message_price(v_budget, v_wanted ->> 'channel', v_wanted ->> 'kind', (v_wanted ->> 'segments')::integer);
      if v_amount > 0 and v_month.committed + v_amount > v_budget.hard_limit and not coalesce((v_wanted ->> 'exempt')::boolean, false) then
        v_refused := v_refused || jsonb_build_object(v_wanted ->> 'id', 'budget');
        v_refusing := true;
        continue;
      end if;
      v_month.committed := v_month.committed + v_amount;
      insert into public.send_permits as s (delivery_id, client_id, month, currency, amount, created_at)
      values ((v_wanted ->> 'id')::uuid, v_budget.client_id, v_first, v_budget.currency, v_amount, p_now)
      on conflict (delivery_id) do update
        set month = excluded.month, currency = excluded.currency, messages = s.messages + 1, amount = s.amount + excluded.amount;
    end loop;
    if v_refusing and v_month.hard_alerted_at is null then
      v_month.hard_alerted_at := p_now;
      perform private.raise_alert('budget_hard', 'critical', format('budget_hard:%s:%s', v_budget.client_id, v_first),
        'A client has used up its budget of the month: what would cost more is not sent.',
        jsonb_build_object('month', v_first, 'currency', v_budget.currency, 'committed', v_month.committed, 'hard_limit', v_budget.hard_limit),
        v_budget.client_id);
    end if;
    if v_month.committed > v_budget.soft_limit and v_month.soft_alerted_at is null then
      v_month.soft_alerted_at := p_now;
      perform private.raise_alert('budget_soft', 'warning', format('budget_soft:%s:%s', v_budget.client_id, v_first),
        'A client has passed the soft limit of its budget of the month.',
        jsonb_build_object('month', v_first, 'currency', v_budget.currency, 'committed', v_month.committed, 'soft_limit', v_budget.soft_limit),
        v_budget.client_id);
    end if;
    update public.budget_months
       set committed = v_month.committed, soft_alerted_at = v_month.soft_alerted_at, hard_alerted_at = v_month.hard_alerted_at
     where client_id = v_budget.client_id and month = v_first and currency = v_budget.currency;
  end loop;
  return v_refused;
end
$$;
comment on function private.reserve_budget is
  'Commits the most that each message can cost, in the order given, while the budget of its client lasts; {id: budget} of those for which it does not. Locks the client''s month until the end of the transaction.';

create or replace function private.pass_guards(p_wanted jsonb, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_wanted jsonb;
begin
  -- What has a permit keeps it: the same claim may ask twice, and a retry is the same message.
  select coalesce(jsonb_agg(w order by n), '[]') into v_wanted
    from jsonb_array_elements(p_wanted) with ordinality x (w, n)
   where coalesce((w ->> 'again')::boolean, false) or not exists (select from public.send_permits s where s.delivery_id = (w ->> 'id')::uuid);
  if v_wanted = '[]' then
    return '{}';
  end if;
  return private.reserve_budget(v_wanted, p_now);
end
$$;
comment on function private.pass_guards is
  'Permits for messages about to be sent: [{id, client_id, channel, number, kind, segments, exempt, again}] -> {id: reason} of those that may not. The last thing a claim does: it takes locks that all senders of a client share.';

create or replace function private.guards_of_work(
  p_client_id uuid, p_sms_delivery_id uuid, p_whatsapp_delivery_id uuid, p_profile jsonb, p_purpose text, p_exempt boolean, p_now timestamptz
) returns jsonb language plpgsql set search_path = '' as $$
declare
  v_wanted jsonb := '[]';
  v_refused jsonb;
begin
  if p_profile ->> 'phone_number' is not null then
    -- The longest that our texts may be: ihuza_core::summary::SMS_MAX_SEGMENTS and ihuza_core::sms::REPLY_MAX_SEGMENTS.
    v_wanted := v_wanted || jsonb_build_object('id', p_sms_delivery_id, 'client_id', p_client_id, 'channel', 'sms', 'number', p_profile ->> 'phone_number',
      'segments', case p_purpose when 'call_summary' then 2 else 3 end, 'exempt', p_exempt);
  end if;
  if p_profile ->> 'whatsapp' <> 'no' or p_profile ->> 'whatsapp_to' is not null then
    -- An answer is only ever free text.
    v_wanted := v_wanted || jsonb_build_object('id', p_whatsapp_delivery_id, 'client_id', p_client_id, 'channel', 'whatsapp',
      'number', coalesce(p_profile ->> 'whatsapp_to', p_profile ->> 'phone_number', p_profile ->> 'whatsapp_user_id'),
      'kind', case p_purpose when 'call_summary' then null else 'text' end, 'exempt', p_exempt);
  end if;
  v_refused := private.pass_guards(v_wanted, p_now);
  return jsonb_build_object('refused', jsonb_strip_nulls(jsonb_build_object(
    'sms', v_refused ->> p_sms_delivery_id::text, 'whatsapp', v_refused ->> p_whatsapp_delivery_id::text)));
end
$$;
comment on function private.guards_of_work is
  'What stands against sending the messages of a claim: {refused: {sms, whatsapp}}, a channel with the reason why it may not be used.';

create or replace function private.guarded_notification(p_id uuid, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_claim public.call_notifications;
  v_answer jsonb := private.notification_answer(p_id, p_now);
begin
  select * into strict v_claim from public.call_notifications where id = p_id;
  return v_answer || jsonb_build_object('guards', private.guards_of_work(v_claim.client_id, v_claim.sms_delivery_id, v_claim.whatsapp_delivery_id,
    v_answer -> 'profile', 'call_summary', false, p_now));
end
$$;
comment on function private.guarded_notification(uuid, timestamptz) is 'The answer to a claim of a notification, with what stands against sending it.';

create or replace function private.guard_due(p_ids uuid[], p_now timestamptz) returns uuid[]
language plpgsql set search_path = '' as $$
declare
  v_wanted jsonb;
  v_refused jsonb;
  v_row public.message_delivery_log;
  v_passed uuid[] := '{}';
begin
  select coalesce(jsonb_agg(jsonb_build_object(
           'id', l.id, 'client_id', l.client_id, 'channel', l.channel, 'kind', l.payload ->> 'kind', 'segments', l.segments,
           'number', l.recipient,
           -- Nothing is known of the last sending, so that this one may be charged as well.
           'again', l.possible_duplicate and l.last_outcome = 'unknown',
           'exempt', coalesce(l.purpose = 'keyword' and t.keyword = 'stop', false)) order by l.id), '[]')
    into v_wanted
    from public.message_delivery_log l left join public.conversation_turns t on t.id = l.turn_id
   where l.id = any (p_ids);
  v_refused := private.pass_guards(v_wanted, p_now);
  for v_row in select * from public.message_delivery_log where id = any (p_ids) order by id loop
    if not v_refused ? v_row.id::text then
      v_passed := v_passed || v_row.id;
      continue;
    end if;
    update public.message_delivery_log
       set lease_token = null, lease_until = null, next_attempt_at = null, attempts = greatest(attempts - 1, 0),
           suppress_reason = v_refused ->> v_row.id::text
     where id = v_row.id;
    -- What may have arrived stays unknown; the rest was never sent.
    if v_row.last_outcome is distinct from 'unknown' then
      perform private.add_own_event(v_row.id, 'suppressed', p_now, v_row.correlation_id);
      perform private.refold_delivery(v_row.id);
    end if;
  end loop;
  return v_passed;
end
$$;
comment on function private.guard_due is 'Of claimed deliveries those that may be sent; the others are recorded as suppressed, with the reason.';

create or replace function private.settle_permit() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_permit public.send_permits;
  v_budget public.client_budgets;
  v_price numeric;
  v_amount numeric;
begin
  select * into v_permit from public.send_permits where delivery_id = new.id and month is not null;
  if not found then
    return null;
  end if;
  select * into v_budget from public.client_budgets where client_id = v_permit.client_id and currency = v_permit.currency;
  if found then
    v_price := private.message_price(v_budget, new.channel, new.payload ->> 'kind', new.segments);
  end if;
  v_amount := case
    -- Nobody took it.
    when new.status in ('failed', 'undeliverable', 'expired', 'suppressed')
      and new.sent_at is null and new.unknown_at is null and new.cost is null then 0
    when new.cost is not null and new.cost_currency = v_permit.currency then new.cost + (v_permit.messages - 1) * coalesce(v_price, new.cost)
    when v_price is null then v_permit.amount
    else v_price * v_permit.messages end;
  if v_amount <> v_permit.amount then
    update public.send_permits set amount = v_amount where delivery_id = new.id;
    insert into public.budget_changes (client_id, month, currency, amount)
    values (v_permit.client_id, v_permit.month, v_permit.currency, v_amount - v_permit.amount);
  end if;
  return null;
end
$$;
comment on function private.settle_permit is
  'Trigger: commits what a message costs as far as it is known: the provider''s word, else the price of what was sent, else nothing where nobody took it.';

create or replace function private.release_permits() returns trigger
language plpgsql set search_path = '' as $$
begin
  with unused as (
    delete from public.send_permits s
     where s.delivery_id in (new.sms_delivery_id, new.whatsapp_delivery_id)
       and not exists (select from public.message_delivery_log l where l.id = s.delivery_id)
    returning s.*
  )
  insert into public.budget_changes (client_id, month, currency, amount)
  select u.client_id, u.month, u.currency, -u.amount from unused u where u.amount <> 0;
  return null;
end
$$;
comment on function private.release_permits is 'Trigger: a work has ended; what was reserved for messages that it did not write is free again.';

drop trigger if exists message_delivery_log_settle on public.message_delivery_log;
create trigger message_delivery_log_settle after update of status, cost, segments on public.message_delivery_log
  for each row when (new.direction = 'outbound') execute function private.settle_permit();
drop trigger if exists call_notifications_release on public.call_notifications;
create trigger call_notifications_release after update of status on public.call_notifications
  for each row when (new.status in ('done', 'abandoned')) execute function private.release_permits();
drop trigger if exists conversation_turns_release on public.conversation_turns;
create trigger conversation_turns_release after update of status on public.conversation_turns
  for each row when (new.status in ('answered', 'suppressed', 'abandoned')) execute function private.release_permits();
drop trigger if exists client_budgets_touch on public.client_budgets;
create trigger client_budgets_touch before update on public.client_budgets for each row execute function private.touch_updated_at();
drop trigger if exists budget_months_touch on public.budget_months;
create trigger budget_months_touch before update on public.budget_months for each row execute function private.touch_updated_at();
drop trigger if exists send_permits_touch on public.send_permits;
create trigger send_permits_touch before update on public.send_permits for each row execute function private.touch_updated_at();

alter table public.client_budgets enable row level security;
alter table public.budget_months enable row level security;
alter table public.budget_changes enable row level security;
alter table public.send_permits enable row level security;
drop policy if exists client_budgets_select on public.client_budgets;
create policy client_budgets_select on public.client_budgets for select to authenticated
  using (client_id in (select private.my_client_ids()));
drop policy if exists budget_months_select on public.budget_months;
create policy budget_months_select on public.budget_months for select to authenticated
  using (client_id in (select private.my_client_ids()));
drop policy if exists budget_changes_select on public.budget_changes;
create policy budget_changes_select on public.budget_changes for select to authenticated
  using (client_id in (select private.my_client_ids()));
drop policy if exists send_permits_select on public.send_permits;
create policy send_permits_select on public.send_permits for select to authenticated using (false);
revoke all on public.client_budgets, public.budget_months, public.budget_changes, public.send_permits, public.v_budget_months from public, anon, authenticated;
grant select on public.client_budgets, public.budget_months, public.budget_changes, public.v_budget_months to authenticated;
grant select on public.v_budget_months to service_role;
grant select, insert, update, delete on public.client_budgets, public.budget_months, public.budget_changes, public.send_permits to service_role;
revoke all on sequence public.budget_changes_id_seq from public, anon, authenticated;
grant usage, select on sequence public.budget_changes_id_seq to service_role;

create or replace function public.begin_call_notification(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_correlation text := private.required(p, 'correlation_id');
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 120)::double precision);
  v_wait_seconds integer := coalesce((p ->> 'unknown_wait_seconds')::integer, 120);
  v_wait interval := make_interval(secs => v_wait_seconds);
  v_idle interval := make_interval(hours => coalesce((p ->> 'session_idle_hours')::integer, 72));
  v_call public.voice_calls;
  v_claim public.call_notifications;
  v_to record;
  v_session_id uuid;
  v_created boolean := false;
  v_known boolean;
  v_claimed boolean := false;
  v_judged text;
begin
  select * into v_call from public.voice_calls where id = private.find_call(private.required(p, 'call_ref'));
  if not found then
    perform private.note_request(p, null, null, 'call_not_found', v_now);
    return jsonb_build_object('decision', 'call_not_found', 'tried',
      jsonb_build_array('call_summaries.id', 'voice_calls.id', 'voice_calls.provider_call_id', 'voice_calls.mtn_call_sid'));
  end if;

  select * into v_claim from public.call_notifications where call_id = v_call.id;
  v_known := found;
  -- Nobody could be told. A later request, or the call's row by now, may name somebody.
  if not v_known or (v_claim.status = 'no_recipient' and v_claim.lease_token <> v_token) then
    select * into v_to from private.recipient_of_call(v_call, p ->> 'profile_ref', p ->> 'phone_number');
    if v_to.profile_id is not null then
      select o.session_id, o.created into v_session_id, v_created
        from private.open_session(v_call.client_id, v_to.profile_id, 'voice', v_call.id, v_idle, v_now) o;
      v_now := greatest(v_now, private.now_of(p));  -- there may have been a wait for the session's lock
    end if;
    if not v_known then
      insert into public.call_notifications
        (client_id, call_id, profile_id, session_id, phone_number, status, lease_token, lease_until, unknown_wait_seconds, session_created,
         correlation_id, finished_at)
      values
        (v_call.client_id, v_call.id, v_to.profile_id, v_session_id, v_to.phone,
         case when v_to.profile_id is null then 'no_recipient' else 'open' end, v_token, v_now + v_lease, v_wait_seconds, v_created, v_correlation,
         case when v_to.profile_id is null then v_now end)
      on conflict (call_id) do nothing
      returning * into v_claim;
      v_claimed := found;
    elsif v_to.profile_id is not null then
      update public.call_notifications
         set status = 'open', profile_id = v_to.profile_id, session_id = v_session_id, phone_number = v_to.phone, session_created = v_created,
             lease_token = v_token, lease_until = v_now + v_lease, unknown_wait_seconds = v_wait_seconds, correlation_id = v_correlation, finished_at = null
       where id = v_claim.id and status = 'no_recipient'
      returning * into v_claim;
      v_claimed := found;
    end if;
    if v_claimed then
      perform private.note_request(p, v_call.id, v_claim.id, 'working', v_now);
      update public.voice_calls set notified_at = v_now, profile_id = coalesce(profile_id, v_claim.profile_id) where id = v_call.id;
      if v_claim.status = 'no_recipient' then
        return jsonb_build_object('decision', 'no_recipient');
      end if;
      perform private.touch_session(v_claim.session_id, 'active', array['voice'], v_now, null, v_call.agent_id, v_call.id);
      update public.conversation_threads set call_id = v_call.id where session_id = v_claim.session_id and call_id is distinct from v_call.id;
      if v_call.direction = 'inbound' then
        update public.profiles set last_active_channel = 'voice' where id = v_claim.profile_id and last_active_channel is distinct from 'voice';
      end if;
      return private.guarded_notification(v_claim.id, v_now);
    end if;
    select * into strict v_claim from public.call_notifications where call_id = v_call.id;
  end if;

  if v_claim.status in ('open', 'released') then
    perform from public.omnichannel_sessions where id = v_claim.session_id for no key update;
    select * into strict v_claim from public.call_notifications where id = v_claim.id for no key update;
    v_now := greatest(v_now, private.now_of(p));
  end if;
  perform private.note_request(p, v_call.id, v_claim.id, case when v_claim.correlation_id = v_correlation then 'working' else 'duplicate' end, v_now);
  v_judged := private.judge_claim(v_claim.status, v_claim.lease_token, v_claim.lease_until, v_claim.next_attempt_at, v_claim.attempt, v_token, v_wait, v_now);

  if v_judged in ('wait', 'again', 'dead') then
    -- The holder is gone. What a provider reported meanwhile settles it.
    if cardinality(private.record_carried(v_claim.client_id, v_claim.session_id, v_claim.profile_id, v_claim.call_id, null, v_claim.sms_delivery_id,
         v_claim.whatsapp_delivery_id, 'call_summary', v_claim.correlation_id, 'call:' || v_claim.call_id, v_now)) > 0 then
      update public.call_notifications set status = 'done', finished_at = v_now, previous_lease_token = lease_token where id = v_claim.id
      returning * into v_claim;
      perform private.touch_session(v_claim.session_id, 'follow_up', array[]::text[], v_now);
      v_judged := 'finished';
    elsif v_judged = 'dead' then
      update public.call_notifications set status = 'unknown', finished_at = v_now where id = v_claim.id returning * into v_claim;
      perform private.give_up('post-call-notify', 'call:' || v_claim.call_id, jsonb_build_object('call_id', v_claim.call_id), v_claim.attempt::integer,
        'crashed_twice', v_claim.correlation_id, v_claim.client_id);
      v_judged := 'finished';
    end if;
  end if;
  if v_judged = 'free' and v_claim.claims >= 50 then
    update public.call_notifications set status = 'abandoned', finished_at = v_now where id = v_claim.id returning * into v_claim;
    perform private.give_up('post-call-notify', 'call:' || v_claim.call_id, jsonb_build_object('call_id', v_claim.call_id), v_claim.claims,
      'given_back_too_often', v_claim.correlation_id, v_claim.client_id);
    v_judged := 'finished';
  end if;

  case v_judged
    when 'finished' then
      if v_claim.status = 'no_recipient' and v_claim.lease_token = v_token then
        return jsonb_build_object('decision', 'no_recipient');
      end if;
      return jsonb_build_object('decision', 'duplicate', 'correlation_id', v_claim.correlation_id, 'status', v_claim.status);
    when 'live' then
      return jsonb_build_object('decision', 'busy', 'retry_after_s', private.seconds_until(v_claim.lease_until, v_now));
    when 'later' then
      return jsonb_build_object('decision', 'busy', 'retry_after_s', private.seconds_until(v_claim.next_attempt_at, v_now));
    when 'wait' then
      return jsonb_build_object('decision', 'wait_unknown', 'retry_after_s', private.seconds_until(v_claim.lease_until + v_wait, v_now));
    when 'mine' then
      update public.call_notifications set lease_until = v_now + v_lease where id = v_claim.id;
    when 'free' then
      update public.call_notifications
         set status = 'open', lease_token = v_token, lease_until = v_now + v_lease, claims = claims + 1, next_attempt_at = null, result = null
       where id = v_claim.id;
    when 'again' then
      update public.call_notifications
         set previous_lease_token = lease_token, lease_token = v_token, lease_until = v_now + v_lease,
             claims = claims + 1, attempt = 2, possible_duplicate = true
       where id = v_claim.id;
  end case;
  return private.guarded_notification(v_claim.id, v_now);
end
$$;

create or replace function private.turn_answer(p_turn_id uuid, p_history_limit integer, p_now timestamptz) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_turn public.conversation_turns;
  v_session public.omnichannel_sessions;
  v_profile jsonb;
  v_summary jsonb;
  v_messages jsonb;
  v_history jsonb;
  v_wanted text[] := array['mtn', 'openai'];
  v_from text;
  v_channel text;
  v_answer jsonb;
begin
  select * into strict v_turn from public.conversation_turns where id = p_turn_id;
  select * into strict v_session from public.omnichannel_sessions where id = v_turn.session_id;
  -- The answer goes to the number that wrote, which need not be the profile's own.
  select m.channel, d.sender into v_channel, v_from
    from public.conversation_messages m left join public.message_delivery_log d on d.message_id = m.id and d.direction = 'inbound'
   where m.turn_id = p_turn_id and m.direction = 'inbound'
   order by private.may_answer(v_turn.profile_id, m.channel) desc, m.seq desc limit 1;
  v_profile := private.profile_json(v_turn.profile_id, case when private.is_e164(v_from) then v_from end, p_now)
    -- Who wrote on WhatsApp is answered under the very name that wrote.
    || jsonb_build_object('whatsapp_to', case v_channel when 'whatsapp' then v_from end);
  if v_profile ->> 'whatsapp' = 'yes' or v_channel = 'whatsapp' then
    v_wanted := v_wanted || 'whatsapp'::text;
  end if;
  if v_turn.kind = 'keyword' then
    v_wanted := array[case v_channel when 'whatsapp' then 'whatsapp' else 'mtn' end];
  end if;
  if v_session.call_id is not null then
    select jsonb_build_object('headline', s.headline, 'points', s.points, 'next_step', s.next_step, 'language', s.language, 'call_ended_at', c.ended_at)
      into v_summary
      from public.call_summaries s join public.voice_calls c on c.id = s.call_id
     where s.call_id = v_session.call_id;
  end if;
  select coalesce(jsonb_agg(jsonb_build_object('id', m.id, 'text', m.content, 'channel', m.channel, 'received_at', m.occurred_at) order by m.seq), '[]')
    into v_messages
    from public.conversation_messages m
   where m.turn_id = p_turn_id and m.direction = 'inbound';
  select coalesce(jsonb_agg(jsonb_build_object('role', h.role, 'channel', h.channel, 'text', h.content, 'at', h.occurred_at, 'language', h.language) order by h.seq), '[]')
    into v_history
    from (
      select m.seq, m.role, m.channel, m.content, m.occurred_at, m.language
        from public.conversation_messages m
       where m.session_id = v_turn.session_id and m.kind <> 'keyword' and m.handled_at is not null and m.turn_id is distinct from p_turn_id
       order by m.seq desc limit p_history_limit
    ) h;
  v_answer := jsonb_build_object(
    'decision', 'go',
    'kind', v_turn.kind,
    'keyword', v_turn.keyword,
    'channel', coalesce(v_channel, 'sms'),
    'turn_id', v_turn.id,
    'claims', v_turn.claims,
    'possible_duplicate', v_turn.possible_duplicate,
    'already_sent', to_jsonb(private.sent_channels(v_turn.sms_delivery_id, v_turn.whatsapp_delivery_id)),
    'correlation_id', v_turn.correlation_id,
    'call_correlation_id', v_turn.call_correlation_id,
    'session', private.session_json(v_turn.session_id, v_turn.session_created),
    'profile', v_profile,
    'client', private.client_json(v_turn.client_id),
    'agent', private.agent_json(v_turn.client_id, v_session.last_agent_id),
    'call_summary', v_summary,
    'language_hint', (select m.language from public.conversation_messages m
                       where m.turn_id = p_turn_id and m.direction = 'inbound' and m.language is not null order by m.seq desc limit 1),
    'messages', v_messages,
    'history', v_history,
    'delivery_ids', jsonb_build_object('sms', v_turn.sms_delivery_id, 'whatsapp', v_turn.whatsapp_delivery_id),
    'attempt', v_turn.attempt,
    'providers', private.provider_gates(v_wanted, v_turn.lease_token, p_now));
  -- Last of all, for its locks. STOP is confirmed whatever it costs.
  return v_answer || jsonb_build_object('guards', private.guards_of_work(v_turn.client_id, v_turn.sms_delivery_id, v_turn.whatsapp_delivery_id,
    v_profile, case v_turn.kind when 'keyword' then 'keyword' else 'reply' end, v_turn.keyword is not distinct from 'stop', p_now));
end
$$;

create or replace function public.claim_due_deliveries(p jsonb) returns jsonb
language plpgsql set search_path = '' as $$
declare
  v_now timestamptz := private.now_of(p);
  v_token uuid := private.required(p, 'lease_token')::uuid;
  v_lease interval := make_interval(secs => coalesce((p ->> 'lease_seconds')::numeric, 120)::double precision);
  v_wait interval := make_interval(secs => coalesce((p ->> 'unknown_wait_seconds')::numeric, 120)::double precision);
  v_limit integer := least(coalesce((p ->> 'limit')::integer, 20), 500);
  v_only uuid := (p ->> 'delivery_id')::uuid;
  -- A queue's clock may run a little ahead of ours.
  v_due timestamptz := v_now + case when v_only is null then interval '0' else interval '2 seconds' end;
  v_ids uuid[];
  v_claimed uuid[] := '{}';
  v_wanted text[];
  v_gates jsonb;
  v_gate text;
  v_paused text[];
  v_probed text[] := '{}';
  v_seen uuid[] := '{}';
  v_row record;
begin
  select array_agg(l.id order by l.id) into v_ids
    from public.message_delivery_log l
   where l.lease_token = v_token and l.lease_until > v_now and (v_only is null or v_only in (l.id, l.fallback_of));
  if v_ids is not null then
    -- The same token again: its answer was lost.
    return jsonb_build_object(
      'deliveries', (select jsonb_agg(private.due_delivery_json(i)) from unnest(v_ids) i),
      'looked_at', cardinality(v_ids), 'fallbacks', '[]'::jsonb,
      'providers', private.provider_gates('{}', v_token, v_now));
  end if;

  if v_only is null then
    select array_agg(distinct d.provider) into v_wanted
      from (select l.provider from public.message_delivery_log l where l.next_attempt_at <= v_due order by l.next_attempt_at limit 500) d;
  else
    select array[l.provider] into v_wanted
      from public.message_delivery_log l where l.id = v_only and l.next_attempt_at <= v_due and (l.lease_until is null or l.lease_until <= v_now);
  end if;
  v_gates := private.provider_gates(coalesce(v_wanted, '{}'), v_token, v_now);
  if v_wanted is null then
    return jsonb_build_object('deliveries', '[]'::jsonb, 'looked_at', 0, 'fallbacks', '[]'::jsonb, 'providers', v_gates);
  end if;
  v_paused := array(select g.key from jsonb_each(v_gates) g where g.value ->> 'gate' = 'open');
  if v_only is null and v_paused <> '{}' then
    -- What would only be put off is put off all at once, and takes nobody's place among the candidates.
    update public.message_delivery_log l
       set next_attempt_at = greatest((v_gates -> l.provider ->> 'open_until')::timestamptz, v_now) + random() * interval '15 seconds'
     where l.id in (select c.id from public.message_delivery_log c
                     where c.next_attempt_at <= v_due and c.provider = any (v_paused) and c.status <> 'unknown' and c.lease_token is null
                       and (c.deadline_at is null or c.deadline_at > v_now)
                     order by c.next_attempt_at limit 1000
                       for no key update skip locked);
  end if;

  -- Twice: what the first round hands to the other channel is due at once.
  for v_round in 1 .. 2 loop
    for v_row in
      select l.id, l.provider from public.message_delivery_log l
       where l.next_attempt_at <= v_due and (l.lease_until is null or l.lease_until <= v_now)
         and (v_only is null or l.id = v_only or (v_round = 2 and l.fallback_of = v_only))
         -- A provider that has a pause keeps no other waiting. What is unknown, past its deadline or left by its holder is settled all the same.
         and (v_only is not null or l.provider is null or l.provider <> all (v_paused)
           or l.status = 'unknown' or l.lease_token is not null or l.deadline_at <= v_now)
       order by l.next_attempt_at
       limit v_limit - cardinality(v_claimed)
         for no key update skip locked
    loop
      v_seen := v_seen || v_row.id;
      v_gate := coalesce(v_gates -> v_row.provider ->> 'gate', 'closed');
      if v_gate = 'probe' and v_row.provider = any (v_probed) then
        v_gate := 'open';  -- one probe is one message
      end if;
      if private.claim_delivery(v_row.id, v_token, v_lease, v_wait, v_gate,
           coalesce((v_gates -> v_row.provider ->> 'open_until')::timestamptz, v_now + interval '10 seconds'), v_now) then
        v_claimed := v_claimed || v_row.id;
        if v_gate = 'probe' then
          v_probed := v_probed || v_row.provider;
        end if;
      end if;
    end loop;
    exit when cardinality(v_claimed) >= v_limit;
  end loop;
  -- After all rows are locked, in one go and in one order, for the locks that all senders share.
  v_claimed := private.guard_due(v_claimed, v_now);
  v_probed := array(select distinct l.provider from public.message_delivery_log l where l.id = any (v_claimed) and l.provider = any (v_probed));
  -- A probe that no message will use goes back at once.
  update public.provider_health set probe_token = null, probe_until = null
   where probe_token = v_token and provider <> all (v_probed);
  return jsonb_build_object(
    'deliveries', coalesce((select jsonb_agg(private.due_delivery_json(i)) from unnest(v_claimed) i), '[]'),
    'looked_at', cardinality(v_seen),
    -- Messages that another channel is to carry now and that this claim had no room for.
    'fallbacks', coalesce((
      select jsonb_agg(jsonb_build_object('id', l.id, 'channel', l.channel, 'correlation_id', l.correlation_id) order by l.id)
        from public.message_delivery_log l
       where l.fallback_of = any (v_seen) and l.status = 'queued' and l.next_attempt_at <= v_due and l.lease_token is null), '[]'),
    'providers', v_gates);
end
$$;

revoke execute on function private.is_time_zone(text), private.message_price(public.client_budgets, text, text, integer), private.reserve_budget(jsonb, timestamptz),
  private.pass_guards(jsonb, timestamptz), private.guards_of_work(uuid, uuid, uuid, jsonb, text, boolean, timestamptz),
  private.guarded_notification(uuid, timestamptz), private.guard_due(uuid[], timestamptz), private.settle_permit(), private.release_permits()
  from public, anon, authenticated;
grant execute on function private.is_time_zone(text), private.message_price(public.client_budgets, text, text, integer), private.reserve_budget(jsonb, timestamptz),
  private.pass_guards(jsonb, timestamptz), private.guards_of_work(uuid, uuid, uuid, jsonb, text, boolean, timestamptz),
  private.guarded_notification(uuid, timestamptz), private.guard_due(uuid[], timestamptz), private.settle_permit(), private.release_permits()
  to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012330'::text $$;

-- PostgREST reads the new functions now rather than at its next restart.
notify pgrst, 'reload schema';
