-- 20261121019520_reports_in_any_order.sql
-- What is told of an SMS late, twice or by a plain UPDATE comes to the same in any order: equal ranks by time, then by word. Amounts, times and
-- names that cannot be are refused, a message that contradicts another under its id too; a row is of the client of its deployment; prices are those of
-- the day it is sent; an amount that no margin can hold stops nothing else.
-- Safe to run again. Locks agent_sms for a moment (two columns) and agent_calls (a trigger).
-- Undo: drop the columns, the trigger and the functions added here, and apply private.complete_agent_sms and private.write_agent_sms of
-- 20261121019020, private.fill_margins of 20261121013100, and the others of 20261121013130.

alter table public.agent_sms add column if not exists status_at timestamptz;
alter table public.agent_sms add column if not exists cost_at timestamptz;
do $$
begin
  perform private.require_columns('public.agent_sms', '{"status_at": "timestamp with time zone", "cost_at": "timestamp with time zone"}');
end
$$;
comment on column public.agent_sms.status_at is 'Time of the report that status is from, of two arrivals the first; null: nobody has said.';
comment on column public.agent_sms.cost_at is 'Time of the report that cost is from; null: of none.';

create or replace function private.refuse_time(p_field text, p_at timestamptz) returns void
language plpgsql stable set search_path = '' as $$
begin
  if p_at is not null and (not isfinite(p_at) or p_at < '2000-01-01T00:00:00Z' or p_at > now() + interval '1 day') then
    raise exception using errcode = 'PT400', message = format('field %s must be between 2000 and a day from now', p_field);
  end if;
end
$$;
comment on function private.refuse_time is 'PT400 with the name of a field whose time cannot be that of a message.';

create or replace function private.price_changes_between(p_client_id uuid, p_provider text, p_one timestamptz, p_other timestamptz) returns boolean
language plpgsql stable set search_path = '' as $$
declare
  v_from constant timestamptz := least(p_one, p_other);
  v_until constant timestamptz := greatest(p_one, p_other);
begin
  -- As private.prices_of looks: a client's list and the general one, each by its part of the index.
  return exists (select from public.channel_prices r
                  where r.client_id = p_client_id and r.side in ('cost', 'revenue') and r.provider in (p_provider, 'any') and r.kind = 'segment'
                    and (r.valid_from > v_from and r.valid_from <= v_until or r.valid_until > v_from and r.valid_until <= v_until))
      or exists (select from public.channel_prices r
                  where r.client_id is null and r.side in ('cost', 'revenue') and r.provider in (p_provider, 'any') and r.kind = 'segment'
                    and (r.valid_from > v_from and r.valid_from <= v_until or r.valid_until > v_from and r.valid_until <= v_until));
end
$$;
comment on function private.price_changes_between is 'Whether a price of a segment begins or ends between two times.';

create or replace function private.complete_agent_sms() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_client_id uuid;
  v_units record;
  v_prices record;
  v_rank smallint;
  v_old_rank smallint;
  v_at timestamptz;
  v_known_at timestamptz;
  v_takes boolean;
begin
  if tg_op = 'INSERT' then
    if new.deployment_id is null then
      if new.client_id is null then
        raise exception using errcode = 'PT400', message = 'field deployment_id is missing', hint = 'Or name the client_id: its default deployment is taken.';
      end if;
      new.deployment_id := private.deployment_of(new.client_id, 'sms', null, null);
    end if;
    select d.client_id into v_client_id from public.agent_deployments d where d.id = new.deployment_id;
    if not found then
      raise exception using errcode = 'PT404', message = 'deployment not found';
    end if;
    if new.client_id is not null and v_client_id <> new.client_id then
      raise exception using errcode = 'PT409', message = 'deployment_of_another_client', hint = 'Leave client_id out: it is the deployment''s.';
    end if;
    new.client_id := v_client_id;
    new.phone_number := coalesce(private.e164_of(new.phone_number), new.phone_number);
    if new.cost is not null then
      new.cost_source := coalesce(new.cost_source, 'writer');
    end if;
    if new.revenue is not null then
      new.revenue_source := coalesce(new.revenue_source, 'writer');
    end if;
    new.status_at := coalesce(new.status_at, case new.status when 'delivered' then new.delivered_at when 'failed' then new.failed_at end,
      case when private.simple_sms_rank(new.status) > 1 then now() end);
  else
    if (new.client_id, new.deployment_id) is distinct from (old.client_id, old.deployment_id) then
      select d.client_id into v_client_id from public.agent_deployments d where d.id = new.deployment_id;
      if not found then
        raise exception using errcode = 'PT404', message = 'deployment not found';
      end if;
      if v_client_id <> new.client_id then
        raise exception using errcode = 'PT409', message = 'deployment_of_another_client', hint = 'Change both: the client is the deployment''s.';
      end if;
    end if;
    if new.cost is distinct from old.cost then
      new.cost_source := case
        when new.cost is null then null
        when new.cost_source is not distinct from old.cost_source and new.cost_source is distinct from 'provider' then 'writer'
        else new.cost_source end;
    end if;
    if new.revenue is distinct from old.revenue then
      new.revenue_source := case
        when new.revenue is null then null
        when new.revenue_source is not distinct from old.revenue_source and new.revenue_source is distinct from 'provider' then 'writer'
        else new.revenue_source end;
    end if;
  end if;
  if new.message_content is not null and (new.segments is null or new.encoding is null) then
    select u.encoding, u.segments into v_units from private.sms_units(new.message_content) u;
    new.encoding := coalesce(new.encoding, v_units.encoding);
    new.segments := coalesce(new.segments, greatest(v_units.segments, 1));
  end if;

  -- A writer that knows the detailed status need not know ours.
  if new.provider_status is not null and (tg_op = 'INSERT' or new.provider_status is distinct from old.provider_status) then
    v_rank := private.simple_sms_rank(private.simple_sms_status(new.provider_status));
    if v_rank > private.simple_sms_rank(new.status) then
      new.status := private.simple_sms_status(new.provider_status);
    end if;
  end if;
  if tg_op = 'UPDATE' and new.delivery_id is not null then
    -- The delivery log knows which of two ends of its own was first.
    if private.simple_sms_rank(new.status) < private.simple_sms_rank(old.status)
       or new.status = old.status and v_rank < private.simple_sms_rank(old.status) then
      new.status := old.status;
      new.provider_status := old.provider_status;
      new.failure_reason := old.failure_reason;
      new.failed_at := old.failed_at;
      new.delivered_at := old.delivered_at;
    end if;
  elsif tg_op = 'UPDATE' and (
      (new.status, new.provider_status, new.delivered_at, new.failed_at, new.status_at)
        is distinct from (old.status, old.provider_status, old.delivered_at, old.failed_at, old.status_at)
      or new.failure_reason is distinct from old.failure_reason and (new.failure_reason is not null or new.message_content is not null)) then
    -- When it was, as far as the statement says.
    v_at := coalesce(nullif(current_setting('ihuza.sms_report_at', true), '')::timestamptz, case
      when new.status_at is distinct from old.status_at then new.status_at
      when new.status = 'delivered' and new.delivered_at is distinct from old.delivered_at then new.delivered_at
      when new.status = 'failed' and new.failed_at is distinct from old.failed_at then new.failed_at end, now());
    v_known_at := coalesce(case old.status when 'delivered' then old.delivered_at when 'failed' then old.failed_at end, old.status_at, '-infinity');
    v_rank := case when new.status = old.status and v_rank < private.simple_sms_rank(old.status) then v_rank
      else private.simple_sms_rank(new.status) end;
    v_old_rank := private.simple_sms_rank(old.status);
    -- Two that rank alike are told apart by their time, then by their words: so the order in which they come is nothing.
    v_takes := case
      when v_rank <> v_old_rank then v_rank > v_old_rank
      when v_rank = 3 then (lower(new.provider_status) = 'read') is true and (lower(old.provider_status) = 'read') is not true
        or (lower(old.provider_status) = 'read') is not true
           and (v_at, coalesce(new.provider_status, '') collate "C") < (v_known_at, coalesce(old.provider_status, '') collate "C")
      when v_rank = 2 then (v_at, new.status <> 'failed', coalesce(new.provider_status, '') collate "C", coalesce(new.failure_reason, '') collate "C")
        < (v_known_at, old.status <> 'failed', coalesce(old.provider_status, '') collate "C", coalesce(old.failure_reason, '') collate "C")
      else old.provider_status is null
        or (coalesce(array_position('{accepted,scheduled,queued,sending}', lower(new.provider_status)), 0), v_at, new.provider_status collate "C")
         > (coalesce(array_position('{accepted,scheduled,queued,sending}', lower(old.provider_status)), 0), v_known_at, old.provider_status collate "C") end;
    if v_takes then
      new.status_at := case when new.status = 'delivered' and old.status = 'delivered' then least(v_at, v_known_at) else v_at end;
      if new.status = 'delivered' then
        new.delivered_at := case when old.status = 'delivered' then least(v_at, old.delivered_at) else v_at end;
      elsif new.status = 'failed' then
        new.failed_at := v_at;
        new.failure_reason := coalesce(new.failure_reason, case when old.status = 'failed' then old.failure_reason end);
      elsif new.status = 'cancelled' and old.status = 'failed' then
        new.failed_at := null;
        new.failure_reason := null;
      end if;
    else
      -- Late news: what is known already stays, with the times and the reason that belong to it. What was not known is filled in.
      new.failure_reason := case when new.status = 'failed' and old.status = 'failed' then coalesce(old.failure_reason, new.failure_reason) else old.failure_reason end;
      new.delivered_at := case when v_rank = 3 and old.status = 'delivered' then least(v_at, old.delivered_at) else old.delivered_at end;
      new.provider_status := case when new.status = old.status and v_rank = v_old_rank and private.simple_sms_status(old.provider_status) <> old.status
          and private.simple_sms_status(new.provider_status) = old.status then new.provider_status else old.provider_status end;
      new.status := old.status;
      new.failed_at := old.failed_at;
      new.status_at := case when v_rank = 3 and old.status = 'delivered' then least(v_at, old.status_at) else old.status_at end;
    end if;
  end if;
  if new.status = 'delivered' then
    new.delivered_at := coalesce(new.delivered_at, now());
    -- Whoever reported a failure was wrong.
    new.failed_at := null;
    new.failure_reason := null;
  elsif new.status = 'failed' then
    new.failed_at := coalesce(new.failed_at, now());
  end if;

  -- Prices are looked up once, when the row is written, and again only for another provider. From then on the row alone says what a segment costs.
  if tg_op = 'INSERT' or new.provider <> old.provider
     or new.segments is not null and (new.cost is null and new.cost_source is distinct from old.cost_source or old.segments is null)
     -- Written on one day and sent on another, with another list: that of the sending counts.
     or new.sent_at <> old.sent_at and new.phone_number is not null and private.price_changes_between(new.client_id, new.provider, old.sent_at, new.sent_at) then
    if coalesce(new.cost_source, 'price_list') = 'price_list' or coalesce(new.revenue_source, 'price_list') = 'price_list' then
      select * into v_prices from private.prices_of(new.client_id, new.provider, 'segment', new.phone_number, new.sent_at);
    end if;
    if coalesce(new.cost_source, 'price_list') = 'price_list' then
      new.unit_cost := v_prices.cost;
      new.cost := null;
      new.cost_currency := v_prices.cost_currency;
    end if;
    if coalesce(new.revenue_source, 'price_list') = 'price_list' then
      new.unit_revenue := v_prices.revenue;
      new.revenue := null;
      new.revenue_currency := v_prices.revenue_currency;
    end if;
    new := private.price_agent_sms(new);
  elsif (new.status, new.segments, new.unit_cost, new.cost_source, new.unit_revenue, new.revenue_source)
          is distinct from (old.status, old.segments, old.unit_cost, old.cost_source, old.unit_revenue, old.revenue_source)
     or old.provider_message_sid is null and new.provider_message_sid is not null then
    new := private.price_agent_sms(new);
  end if;
  if new.cost is null then
    new.cost_currency := null;
    new.cost_source := null;
  end if;
  if new.revenue is null then
    new.revenue_currency := null;
    new.revenue_source := null;
  end if;
  if tg_op = 'UPDATE' and new.fx_rate is not distinct from old.fx_rate
     and (new.cost_currency, new.revenue_currency) is distinct from (old.cost_currency, old.revenue_currency) then
    new.fx_rate := null;
    new.fx_date := null;
  end if;
  if new.cost_currency = new.revenue_currency or new.cost_currency is null or new.revenue_currency is null then
    new.fx_rate := null;
    new.fx_date := null;
  elsif new.fx_rate is null then
    select f.rate, f.rate_date into new.fx_rate, new.fx_date from private.fx_rate_of(new.cost_currency, new.revenue_currency, new.sent_at) f
     where abs(new.revenue - round(new.cost * f.rate, 6)) < 1000000;
  end if;
  return new;
end
$$;

-- One report, applied to one row. The order in which reports come does not matter: the trigger decides.
create or replace function private.apply_sms_report(
  p_id uuid, p_status text, p_at timestamptz, p_reason text, p_cost numeric, p_currency text
) returns void language plpgsql set search_path = '' as $$
declare
  v_simple text := private.simple_sms_status(p_status);
begin
  perform set_config('ihuza.sms_report_at', p_at::text, true);
  update public.agent_sms s
     set status = v_simple, provider_status = p_status, status_at = p_at,
         failure_reason = case when v_simple = 'failed' then coalesce(p_reason, case when s.status = 'failed' then s.failure_reason end) else s.failure_reason end,
         -- Of two amounts the later report's counts; of one time the larger.
         cost = case when c.news then p_cost else s.cost end, cost_currency = case when c.news then p_currency else s.cost_currency end,
         cost_source = case when c.news then 'provider' else s.cost_source end, cost_at = case when c.news then p_at else s.cost_at end
    from (select t.id, p_cost is not null and (t.cost_source is distinct from 'provider' or t.cost_at is null
                   or (p_at, p_currency, p_cost) > (t.cost_at, t.cost_currency::text, t.cost)) as news
            from public.agent_sms t where t.id = p_id for no key update) c
   where s.id = c.id;
  perform set_config('ihuza.sms_report_at', '', true);
end
$$;
comment on function private.apply_sms_report is 'Applies what a provider reported of a message to its row in agent_sms; late, early or again, in any order.';

create or replace function private.write_agent_sms(
  p_id uuid, p_provider text, p_provider_message_sid text, p_phone_number text, p_message_content text, p_client_id uuid, p_deployment_id uuid,
  p_call_id uuid, p_prospect_id uuid, p_sequence_id uuid, p_session_id uuid, p_status text, p_segments integer, p_sent_at timestamptz,
  p_failure_reason text, p_cost numeric, p_cost_currency text, p_revenue numeric, p_revenue_currency text, p_metadata jsonb
) returns jsonb language plpgsql security definer set search_path = '' as $$
declare
  v_own uuid := private.writer_client();
  v_client_id uuid := coalesce(p_client_id, v_own);
  v_phone text := private.e164_of(p_phone_number);
  v_status text := coalesce(nullif(btrim(p_status), ''), 'queued');
  v_sent_at timestamptz := coalesce(p_sent_at, now());
  v_sid text := nullif(btrim(p_provider_message_sid), '');
  v_other public.agent_sms;
  v_call_id uuid;
  v_prospect_id uuid := p_prospect_id;
  v_row public.agent_sms;
  v_created boolean := false;
  v_report record;
begin
  perform private.refuse_empty('p_provider', p_provider);
  perform private.refuse_empty('p_phone_number', p_phone_number);
  perform private.refuse_empty('p_message_content', p_message_content);
  if p_id is null then
    perform private.refuse_empty('p_provider_message_sid', p_provider_message_sid);
  end if;
  if p_provider !~ '^[a-z][a-z0-9_]{0,39}$' then
    raise exception using errcode = 'PT400', message = 'field p_provider is no provider''s name', hint = 'Lower case, such as twilio.';
  end if;
  if v_phone is null then
    raise exception using errcode = 'PT400', message = 'field p_phone_number is not a phone number', hint = 'E.164, such as +250788123456.';
  end if;
  if length(p_message_content) > 10000 or length(v_sid) > 200 or length(v_status) > 100 or length(p_failure_reason) > 500 then
    raise exception using errcode = 'PT400', message = format('field %s is too long', case
      when length(p_message_content) > 10000 then 'p_message_content' when length(v_sid) > 200 then 'p_provider_message_sid'
      when length(v_status) > 100 then 'p_status' else 'p_failure_reason' end);
  end if;
  if p_segments not between 1 and 1000 then
    raise exception using errcode = 'PT400', message = 'field p_segments must be 1 to 1000';
  end if;
  if (p_cost is null) <> (p_cost_currency is null) or (p_revenue is null) <> (p_revenue_currency is null) then
    raise exception using errcode = 'PT400', message = format('field %s is missing', case
      when p_cost is null and p_cost_currency is not null then 'p_cost' when p_cost is not null and p_cost_currency is null then 'p_cost_currency'
      when p_revenue is null then 'p_revenue' else 'p_revenue_currency' end), hint = 'An amount and its currency go together.';
  end if;
  if p_cost_currency !~ '^[A-Z]{3}$' or p_revenue_currency !~ '^[A-Z]{3}$' then
    raise exception using errcode = 'PT400', message = format('field %s is no currency', case
      when p_cost_currency !~ '^[A-Z]{3}$' then 'p_cost_currency' else 'p_revenue_currency' end), hint = 'ISO 4217, such as USD.';
  end if;
  -- numeric(12,6) would round without a word.
  if p_cost <> round(p_cost, 6) or p_revenue <> round(p_revenue, 6) then
    raise exception using errcode = 'PT400', message = format('field %s has more than six decimals', case when p_cost <> round(p_cost, 6) then 'p_cost' else 'p_revenue' end);
  end if;
  if p_cost < 0 or p_cost > 100000 or p_revenue < 0 or p_revenue > 100000 then
    raise exception using errcode = 'PT400', message = format('field %s must be 0 to 100000', case when p_cost < 0 or p_cost > 100000 then 'p_cost' else 'p_revenue' end),
      hint = 'Of one message, without a sign: Twilio writes what it charges with a minus.';
  end if;
  perform private.refuse_time('p_sent_at', p_sent_at);
  if jsonb_typeof(p_metadata) <> 'object' then
    raise exception using errcode = 'PT400', message = 'field p_metadata must be an object';
  end if;
  if v_own is not null and v_client_id <> v_own then
    raise exception using errcode = 'PT403', message = 'client_of_another_key';
  end if;
  -- Whoever sends does not say what is billed for it.
  if v_own is not null and p_revenue is not null then
    raise exception using errcode = 'PT403', message = 'field p_revenue is not for this key', hint = 'Leave it out: the price list says what the client pays.';
  end if;
  if p_deployment_id is not null then
    select d.client_id into v_client_id from public.agent_deployments d
     where d.id = p_deployment_id and d.client_id = coalesce(v_client_id, d.client_id);
    if not found then
      raise exception using errcode = 'PT404', message = 'deployment not found', hint = 'field p_deployment_id: of agent_deployments, of the same client.';
    end if;
  elsif v_client_id is null then
    raise exception using errcode = 'PT400', message = 'field p_deployment_id is missing', hint = 'Or p_client_id: its default deployment is taken.';
  elsif not exists (select from public.clients c where c.id = v_client_id) then
    raise exception using errcode = 'PT404', message = 'client not found', hint = 'field p_client_id';
  end if;
  if p_call_id is not null then
    select a.id into v_call_id from public.agent_calls a where (a.id = p_call_id or a.voice_call_id = p_call_id) and a.client_id = v_client_id;
    if not found then
      raise exception using errcode = 'PT404', message = 'call not found', hint = 'field p_call_id: of agent_calls or voice_calls, of the same client.';
    end if;
  end if;
  if p_prospect_id is not null then
    if not exists (select from public.prospects r where r.id = p_prospect_id and r.client_id = v_client_id) then
      raise exception using errcode = 'PT404', message = 'prospect not found', hint = 'field p_prospect_id: of the same client.';
    end if;
  else
    v_prospect_id := (select r.id from public.prospects r where r.client_id = v_client_id and r.phone_number = v_phone);
  end if;
  if p_sequence_id is not null and not exists (select from public.sequences q where q.id = p_sequence_id and q.client_id = v_client_id) then
    raise exception using errcode = 'PT404', message = 'sequence not found', hint = 'field p_sequence_id: of the same client.';
  end if;
  if p_session_id is not null and not exists (select from public.omnichannel_sessions o where o.id = p_session_id and o.client_id = v_client_id) then
    raise exception using errcode = 'PT404', message = 'session not found', hint = 'field p_session_id: of the same client.';
  end if;

  perform private.lock_sms(p_provider, v_sid);
  insert into public.agent_sms
    (id, client_id, deployment_id, call_id, prospect_id, sequence_id, session_id, phone_number, message_content, segments, status, provider,
     provider_status, provider_message_sid, sent_at, delivered_at, failed_at, failure_reason, cost, cost_currency, revenue, revenue_currency, metadata)
  values
    (coalesce(p_id, gen_random_uuid()), v_client_id, p_deployment_id, v_call_id, v_prospect_id, p_sequence_id, p_session_id, v_phone,
     p_message_content, p_segments, private.simple_sms_status(v_status), p_provider, v_status, v_sid, v_sent_at,
     case when private.simple_sms_status(v_status) = 'delivered' then now() end,
     case when private.simple_sms_status(v_status) = 'failed' then now() end,
     p_failure_reason, p_cost, p_cost_currency, p_revenue, p_revenue_currency, coalesce(p_metadata, '{}'))
  on conflict do nothing
  returning * into v_row;
  if v_row.id is not null then
    v_created := true;
    -- What was reported before the message was written: of writers outside, and what delivery-status-webhook took from the provider.
    for v_report in
      select r.provider_status as word, r.occurred_at, r.failure_reason, r.cost, r.cost_currency
        from public.agent_sms_reports r
       where r.provider = p_provider and r.provider_message_sid = v_sid and (r.client_id is null or r.client_id = v_client_id)
      union all
      select private.word_of_report(e.status, e.raw_status),
             e.occurred_at, e.error_code, null, null
        from public.message_status_events e
       where e.provider = p_provider and e.provider_message_key = private.provider_message_key(v_sid)
         and e.provider_message_id = v_sid and e.delivery_id is null
       order by 2, 1
    loop
      perform private.apply_sms_report(v_row.id, v_report.word, v_report.occurred_at, v_report.failure_reason, v_report.cost, v_report.cost_currency);
    end loop;
    if found then
      delete from public.agent_sms_reports r
       where r.provider = p_provider and r.provider_message_sid = v_sid and (r.client_id is null or r.client_id = v_client_id);
      select * into v_row from public.agent_sms s where s.id = v_row.id;
    end if;
  else
    select * into v_row from public.agent_sms s
     where s.id = p_id or s.provider = p_provider and s.provider_message_sid = v_sid
     order by (s.id = p_id) desc nulls last limit 1;
    if v_row.client_id <> v_client_id then
      raise exception using errcode = 'PT409', message = 'message_of_another_client', hint = 'field p_provider_message_sid, or p_id';
    end if;
    -- Another message under a name that is taken would be lost without a word.
    select * into v_other from public.agent_sms s where s.provider = p_provider and s.provider_message_sid = v_sid and s.id <> v_row.id;
    if v_other.id is not null or v_sid is not null and (v_row.provider_message_sid, v_row.provider) <> (v_sid, p_provider) then
      raise exception using errcode = 'PT409', message = 'message_differs', hint = 'field p_id: it is the id of another message, with another p_provider_message_sid.';
    end if;
    if v_row.delivery_id is null and (v_row.phone_number <> v_phone or v_row.message_content <> p_message_content) then
      raise exception using errcode = 'PT409', message = 'message_differs',
        hint = format('field %s: a message is there already under this id, and says something else.',
          case when v_row.phone_number <> v_phone then 'p_phone_number' else 'p_message_content' end);
    end if;
    -- Again, or after a first call that knew less: what is there stays.
    update public.agent_sms s
       set provider_message_sid = coalesce(s.provider_message_sid, v_sid), call_id = coalesce(s.call_id, v_call_id),
           prospect_id = coalesce(s.prospect_id, v_prospect_id), sequence_id = coalesce(s.sequence_id, p_sequence_id),
           session_id = coalesce(s.session_id, p_session_id),
           cost = case when s.cost_source in ('provider', 'writer') then s.cost else coalesce(p_cost, s.cost) end,
           cost_currency = case when s.cost_source in ('provider', 'writer') then s.cost_currency else coalesce(p_cost_currency, s.cost_currency) end
     where s.id = v_row.id and s.delivery_id is null
       and (s.provider_message_sid is null and v_sid is not null or s.call_id is null and v_call_id is not null
         or s.prospect_id is null and v_prospect_id is not null or s.sequence_id is null and p_sequence_id is not null
         or s.session_id is null and p_session_id is not null
         or p_cost is not null and coalesce(s.cost_source, '') not in ('provider', 'writer'));
    if p_status is not null and v_row.delivery_id is null then
      perform private.apply_sms_report(v_row.id, v_status, now(), p_failure_reason, null, null);
    end if;
    select * into v_row from public.agent_sms s where s.id = v_row.id;
  end if;
  return jsonb_build_object('id', v_row.id, 'created', v_created, 'status', v_row.status, 'provider_status', v_row.provider_status,
    'segments', v_row.segments, 'cost', v_row.cost, 'cost_currency', v_row.cost_currency);
end
$$;

create or replace function private.write_agent_sms_status(
  p_provider text, p_provider_message_sid text, p_status text, p_occurred_at timestamptz, p_failure_reason text, p_cost numeric, p_cost_currency text
) returns jsonb language plpgsql security definer set search_path = '' as $$
declare
  v_own uuid := private.writer_client();
  v_at timestamptz := least(coalesce(p_occurred_at, now()), now());
  v_row public.agent_sms;
  v_sid text := nullif(btrim(p_provider_message_sid), '');
begin
  perform private.refuse_empty('p_provider', p_provider);
  perform private.refuse_empty('p_provider_message_sid', p_provider_message_sid);
  perform private.refuse_empty('p_status', p_status);
  if p_provider !~ '^[a-z][a-z0-9_]{0,39}$' then
    raise exception using errcode = 'PT400', message = 'field p_provider is no provider''s name', hint = 'Lower case, such as twilio.';
  end if;
  if length(v_sid) > 200 or length(p_status) > 100 or length(p_failure_reason) > 500 then
    raise exception using errcode = 'PT400', message = format('field %s is too long', case
      when length(v_sid) > 200 then 'p_provider_message_sid'
      when length(p_status) > 100 then 'p_status' else 'p_failure_reason' end);
  end if;
  if (p_cost is null) <> (p_cost_currency is null) then
    raise exception using errcode = 'PT400', message = format('field %s is missing', case when p_cost is null then 'p_cost' else 'p_cost_currency' end),
      hint = 'An amount and its currency go together.';
  end if;
  if p_cost_currency !~ '^[A-Z]{3}$' then
    raise exception using errcode = 'PT400', message = 'field p_cost_currency is no currency', hint = 'ISO 4217, such as USD.';
  end if;
  if p_cost <> round(p_cost, 6) then
    raise exception using errcode = 'PT400', message = 'field p_cost has more than six decimals';
  end if;
  if p_cost < 0 or p_cost > 100000 then
    raise exception using errcode = 'PT400', message = 'field p_cost must be 0 to 100000',
      hint = 'Of one message, without a sign: Twilio writes what it charges with a minus.';
  end if;
  perform private.refuse_time('p_occurred_at', p_occurred_at);
  perform private.lock_sms(p_provider, v_sid);
  select * into v_row from public.agent_sms s where s.provider_message_sid = v_sid and s.provider = p_provider;
  if not found then
    delete from public.agent_sms_reports where id in (
      select r.id from public.agent_sms_reports r where r.created_at < now() - interval '7 days' order by r.created_at limit 100 for update skip locked);
    insert into public.agent_sms_reports (client_id, provider, provider_message_sid, provider_status, occurred_at, failure_reason, cost, cost_currency)
    values (v_own, p_provider, v_sid, p_status, v_at, p_failure_reason, p_cost, p_cost_currency)
    on conflict do nothing;
    return jsonb_build_object('id', null, 'status', null, 'provider_status', null, 'waits', true);
  end if;
  if v_own is not null and v_row.client_id <> v_own then
    raise exception using errcode = 'PT404', message = 'message not found';
  end if;
  -- Of our own messages the delivery log speaks, and its reports come to delivery-status-webhook.
  if v_row.delivery_id is null then
    perform private.apply_sms_report(v_row.id, p_status, v_at, p_failure_reason, p_cost, p_cost_currency);
    select * into v_row from public.agent_sms s where s.id = v_row.id;
  end if;
  return jsonb_build_object('id', v_row.id, 'status', v_row.status, 'provider_status', v_row.provider_status, 'waits', false);
end
$$;

create or replace function private.note_sms_reply(p_client_id uuid, p_phone text, p_at timestamptz) returns uuid
language plpgsql set search_path = '' as $$
declare
  v_id uuid;
  v_replied_at timestamptz;
begin
  select s.id, s.replied_at into v_id, v_replied_at
    from public.agent_sms s
   where s.client_id = p_client_id and s.phone_number = p_phone and s.sent_at <= p_at and s.sent_at > p_at - interval '7 days'
     -- Nobody answers what no provider has had.
     and s.status not in ('failed', 'cancelled') and (s.status <> 'pending' or s.provider_message_sid is not null)
   order by s.sent_at desc, s.id limit 1;
  -- The first answer counts, also when it is told last.
  if v_id is not null and (v_replied_at is null or v_replied_at > p_at) then
    update public.agent_sms s set replied_at = p_at where s.id = v_id and (s.replied_at is null or s.replied_at > p_at);
  end if;
  return v_id;
end
$$;

create or replace function private.write_agent_sms_reply(p_phone_number text, p_client_id uuid, p_received_at timestamptz) returns jsonb
language plpgsql security definer set search_path = '' as $$
declare
  v_own uuid := private.writer_client();
  v_client_id uuid := coalesce(p_client_id, v_own);
  v_phone text := private.e164_of(p_phone_number);
begin
  perform private.refuse_empty('p_phone_number', p_phone_number);
  perform private.refuse_empty('p_client_id', v_client_id::text);
  if v_phone is null then
    raise exception using errcode = 'PT400', message = 'field p_phone_number is not a phone number', hint = 'E.164, such as +250788123456.';
  end if;
  if v_own is not null and v_client_id <> v_own then
    raise exception using errcode = 'PT403', message = 'client_of_another_key';
  end if;
  perform private.refuse_time('p_received_at', least(p_received_at, now()));
  return jsonb_build_object('id', private.note_sms_reply(v_client_id, v_phone, least(coalesce(p_received_at, now()), now())));
end
$$;

create or replace function private.report_to_agent_sms() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_id uuid := (select s.id from public.agent_sms s
                 where s.provider_message_sid = new.provider_message_id and s.provider = new.provider and s.delivery_id is null);
begin
  if v_id is not null then
    perform private.apply_sms_report(v_id,
      private.word_of_report(new.status, new.raw_status),
      new.occurred_at, new.error_code,
      case when new.pricing ->> 'amount' ~ '^[0-9]{1,5}([.][0-9]{1,12})?$' and new.pricing ->> 'currency' ~ '^[A-Z]{3}$'
        then trunc((new.pricing ->> 'amount')::numeric, 6) end,
      case when new.pricing ->> 'amount' ~ '^[0-9]{1,5}([.][0-9]{1,12})?$' and new.pricing ->> 'currency' ~ '^[A-Z]{3}$'
        then new.pricing ->> 'currency' end);
  end if;
  return null;
end
$$;

create or replace function private.fill_margins() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_from timestamptz := new.valid_from::timestamp at time zone 'utc';
begin
  -- In the order in which reports lock them.
  perform from public.agent_sms s
    where s.fx_rate is null and s.cost_currency <> s.revenue_currency and s.cost_currency = new.base and s.revenue_currency = new.quote and s.sent_at >= v_from
    order by s.delivery_id for no key update;
  update public.agent_sms s set fx_rate = f.rate, fx_date = f.rate_date
    from public.agent_sms w, lateral private.fx_rate_of(w.cost_currency, w.revenue_currency, w.sent_at) f
   where w.id = s.id and s.fx_rate is null and s.cost_currency <> s.revenue_currency and s.cost_currency = new.base and s.revenue_currency = new.quote
     and s.sent_at >= v_from and abs(s.revenue - round(s.cost * f.rate, 6)) < 1000000;
  update public.agent_calls s set fx_rate = f.rate, fx_date = f.rate_date
    from public.agent_calls w, lateral private.fx_rate_of(w.cost_currency, w.revenue_currency, w.started_at) f
   where w.id = s.id and s.fx_rate is null and s.cost_currency <> s.revenue_currency and s.cost_currency = new.base and s.revenue_currency = new.quote
     and s.started_at >= v_from and abs(s.revenue - round(s.cost * f.rate, 6)) < 1000000;
  -- Calls whose trunk is paid in one currency and whose model in another.
  perform private.count_voice_call(v)
    from public.agent_calls c join public.voice_calls v on v.id = c.voice_call_id
   where c.cost is null and c.voice_call_id is not null and c.started_at >= v_from and v.cost_currency = new.base and v.erased_at is null;
  return null;
end
$$;

create or replace function private.complete_agent_call() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_client_id uuid;
begin
  if new.deployment_id is null and new.client_id is not null then
    new.deployment_id := private.deployment_of(new.client_id, 'voice', null, null);
  end if;
  select d.client_id into v_client_id from public.agent_deployments d where d.id = new.deployment_id;
  if not found then
    raise exception using errcode = 'PT404', message = 'deployment not found', hint = 'Name a deployment_id, or the client_id: its default deployment is taken.';
  end if;
  new.client_id := coalesce(new.client_id, v_client_id);
  if v_client_id <> new.client_id then
    raise exception using errcode = 'PT409', message = 'deployment_of_another_client', hint = 'Leave client_id out: it is the deployment''s.';
  end if;
  return new;
end
$$;
comment on function private.complete_agent_call is 'Trigger: a call is of the client of its deployment; either may be left out.';
drop trigger if exists agent_calls_complete on public.agent_calls;
create trigger agent_calls_complete before insert or update of client_id, deployment_id on public.agent_calls
  for each row execute function private.complete_agent_call();

revoke execute on function private.refuse_time(text, timestamptz), private.price_changes_between(uuid, text, timestamptz, timestamptz),
  private.complete_agent_sms(), private.apply_sms_report(uuid, text, timestamptz, text, numeric, text),
  private.write_agent_sms(uuid, text, text, text, text, uuid, uuid, uuid, uuid, uuid, uuid, text, integer, timestamptz, text, numeric, text, numeric, text, jsonb),
  private.write_agent_sms_status(text, text, text, timestamptz, text, numeric, text), private.note_sms_reply(uuid, text, timestamptz),
  private.write_agent_sms_reply(text, uuid, timestamptz), private.report_to_agent_sms(), private.fill_margins(), private.complete_agent_call()
  from public, anon, authenticated;
grant execute on function private.refuse_time(text, timestamptz), private.price_changes_between(uuid, text, timestamptz, timestamptz),
  private.complete_agent_sms(), private.apply_sms_report(uuid, text, timestamptz, text, numeric, text),
  private.write_agent_sms(uuid, text, text, text, text, uuid, uuid, uuid, uuid, uuid, uuid, text, integer, timestamptz, text, numeric, text, numeric, text, jsonb),
  private.write_agent_sms_status(text, text, text, timestamptz, text, numeric, text), private.note_sms_reply(uuid, text, timestamptz),
  private.write_agent_sms_reply(text, uuid, timestamptz), private.report_to_agent_sms(), private.fill_margins(), private.complete_agent_call()
  to service_role;
grant execute on function private.write_agent_sms(uuid, text, text, text, text, uuid, uuid, uuid, uuid, uuid, uuid, text, integer, timestamptz, text, numeric, text, numeric, text, jsonb), private.write_agent_sms_status(text, text, text, timestamptz, text, numeric, text),
  private.write_agent_sms_reply(text, uuid, timestamptz) to sms_writer;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121019520'::text $$;

notify pgrst, 'reload schema';
