-- 20261121019020_prices_looked_up_once.sql
-- What an SMS costs and what it sells for are looked up together: one look at the number's range and one at the lists instead of two each.
-- Safe to run again. Locks no table. Undo: drop private.prices_of, and apply private.price_of of 20261121013010, private.complete_agent_sms
-- of 20261121013100 and private.write_agent_sms of 20261121013130.

create or replace function private.prices_of(
  p_client_id uuid, p_provider text, p_kind text, p_number text, p_at timestamptz,
  out cost numeric, out cost_currency char(3), out revenue numeric, out revenue_currency char(3)
) language plpgsql stable set search_path = '' as $$
declare
  -- All beginnings of the number; E.164 has no more digits than these.
  v_prefixes text[] := case when length(p_number) <= 16 then array['', left(p_number, 1), left(p_number, 2), left(p_number, 3), left(p_number, 4),
      left(p_number, 5), left(p_number, 6), left(p_number, 7), left(p_number, 8), left(p_number, 9), left(p_number, 10), left(p_number, 11),
      left(p_number, 12), left(p_number, 13), left(p_number, 14), left(p_number, 15), p_number]
    else private.prefixes_of(p_number) end;
  v_country char(2);
  v_operator text;
begin
  select r.country, r.operator into v_country, v_operator
    from public.number_ranges r where r.prefix = any (v_prefixes) order by length(r.prefix) desc limit 1;
  select min(x.price) filter (where x.side = 'cost'), min(x.currency) filter (where x.side = 'cost'),
         min(x.price) filter (where x.side = 'revenue'), min(x.currency) filter (where x.side = 'revenue')
    into prices_of.cost, prices_of.cost_currency, prices_of.revenue, prices_of.revenue_currency
    from (
      select distinct on (r.side) r.side, r.price, r.currency
        from (
          -- Each by its part of the list; the two beside an `or` would be found by reading all of it.
          select o.* from public.channel_prices o
           where o.client_id = p_client_id and o.side in ('cost', 'revenue') and o.provider in (p_provider, 'any') and o.kind = p_kind
          union all
          select g.* from public.channel_prices g
           where g.client_id is null and g.side in ('cost', 'revenue') and g.provider in (p_provider, 'any') and g.kind = p_kind
        ) r
       where r.valid_from <= p_at and (r.valid_until is null or p_at < r.valid_until)
         and r.prefix = any (v_prefixes)
         and (r.country is null or r.country = v_country) and (r.operator is null or r.operator = v_operator)
       -- A client's own list before the general one; in it the most particular row; of those alike the newest.
       order by r.side, (r.client_id is null), length(r.prefix) desc, (r.operator is null), (r.country is null), (r.provider = 'any'), r.valid_from desc
    ) x;
end
$$;
comment on function private.prices_of is
  'The prices of both sides that hold for a number at a time, per segment, message or minute; nulls where no list has one. A client''s own list counts before the general one; in a list a prefix before an operator, before a country, before none.';

create or replace function private.price_of(
  p_client_id uuid, p_side text, p_provider text, p_kind text, p_number text, p_at timestamptz, out price numeric, out currency char(3)
) language plpgsql stable set search_path = '' as $$
declare
  v_prices record;
begin
  select * into v_prices from private.prices_of(p_client_id, p_provider, p_kind, p_number, p_at);
  if p_side = 'cost' then
    price_of.price := v_prices.cost;
    price_of.currency := v_prices.cost_currency;
  elsif p_side = 'revenue' then
    price_of.price := v_prices.revenue;
    price_of.currency := v_prices.revenue_currency;
  end if;
end
$$;
comment on function private.price_of is 'One side (cost or revenue) of private.prices_of.';

create or replace function private.complete_agent_sms() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_client_id uuid;
  v_units record;
  v_prices record;
  v_rank smallint;
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
  else
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
  if tg_op = 'UPDATE' then
    if new.status <> old.status
       and (private.simple_sms_rank(new.status) < private.simple_sms_rank(old.status)
         -- Of two ends the first counts; the delivery log knows which of its own that was.
         or private.simple_sms_rank(new.status) = private.simple_sms_rank(old.status) and new.delivery_id is null)
       or new.status = old.status and v_rank < private.simple_sms_rank(old.status) then
      -- Late news: what is known already stays, with the times and the reason that belong to it.
      new.status := old.status;
      new.provider_status := old.provider_status;
      new.failure_reason := old.failure_reason;
      new.failed_at := old.failed_at;
      new.delivered_at := old.delivered_at;
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
     or new.segments is not null and (new.cost is null and new.cost_source is distinct from old.cost_source or old.segments is null) then
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
    select f.rate, f.rate_date into new.fx_rate, new.fx_date from private.fx_rate_of(new.cost_currency, new.revenue_currency, new.sent_at) f;
  end if;
  return new;
end
$$;
-- A message of which nothing was reported before is not looked at again.
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
  if length(p_message_content) > 10000 or length(p_provider_message_sid) > 200 or length(v_status) > 100 or length(p_failure_reason) > 500 then
    raise exception using errcode = 'PT400', message = format('field %s is too long', case
      when length(p_message_content) > 10000 then 'p_message_content' when length(p_provider_message_sid) > 200 then 'p_provider_message_sid'
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
  if abs(p_cost) >= 1000000 or abs(p_revenue) >= 1000000 then
    raise exception using errcode = 'PT400', message = format('field %s is too large', case when abs(p_cost) >= 1000000 then 'p_cost' else 'p_revenue' end);
  end if;
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

  perform private.lock_sms(p_provider, p_provider_message_sid);
  insert into public.agent_sms
    (id, client_id, deployment_id, call_id, prospect_id, sequence_id, session_id, phone_number, message_content, segments, status, provider,
     provider_status, provider_message_sid, sent_at, delivered_at, failed_at, failure_reason, cost, cost_currency, revenue, revenue_currency, metadata)
  values
    (coalesce(p_id, gen_random_uuid()), v_client_id, p_deployment_id, v_call_id, v_prospect_id, p_sequence_id, p_session_id, v_phone,
     p_message_content, p_segments, private.simple_sms_status(v_status), p_provider, v_status, p_provider_message_sid, v_sent_at,
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
       where r.provider = p_provider and r.provider_message_sid = p_provider_message_sid and (r.client_id is null or r.client_id = v_client_id)
      union all
      select private.word_of_report(e.status, e.raw_status),
             e.occurred_at, e.error_code, null, null
        from public.message_status_events e
       where e.provider = p_provider and e.provider_message_key = private.provider_message_key(p_provider_message_sid)
         and e.provider_message_id = p_provider_message_sid and e.delivery_id is null
       order by 2, 1
    loop
      perform private.apply_sms_report(v_row.id, v_report.word, v_report.occurred_at, v_report.failure_reason, v_report.cost, v_report.cost_currency);
    end loop;
    if found then
      delete from public.agent_sms_reports r
       where r.provider = p_provider and r.provider_message_sid = p_provider_message_sid and (r.client_id is null or r.client_id = v_client_id);
      select * into v_row from public.agent_sms s where s.id = v_row.id;
    end if;
  else
    select * into v_row from public.agent_sms s
     where s.id = p_id or s.provider = p_provider and s.provider_message_sid = p_provider_message_sid
     order by (s.id = p_id) desc nulls last limit 1;
    if v_row.client_id <> v_client_id then
      raise exception using errcode = 'PT409', message = 'message_of_another_client', hint = 'field p_provider_message_sid, or p_id';
    end if;
    -- Again, or after a first call that knew less: what is there stays.
    update public.agent_sms s
       set provider_message_sid = coalesce(s.provider_message_sid, p_provider_message_sid), call_id = coalesce(s.call_id, v_call_id),
           prospect_id = coalesce(s.prospect_id, v_prospect_id), sequence_id = coalesce(s.sequence_id, p_sequence_id),
           session_id = coalesce(s.session_id, p_session_id),
           cost = case when s.cost_source in ('provider', 'writer') then s.cost else coalesce(p_cost, s.cost) end,
           cost_currency = case when s.cost_source in ('provider', 'writer') then s.cost_currency else coalesce(p_cost_currency, s.cost_currency) end
     where s.id = v_row.id and s.delivery_id is null
       and (s.provider_message_sid is null and p_provider_message_sid is not null or s.call_id is null and v_call_id is not null
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
revoke execute on function private.prices_of(uuid, text, text, text, timestamptz), private.price_of(uuid, text, text, text, text, timestamptz),
  private.complete_agent_sms(),
  private.write_agent_sms(uuid, text, text, text, text, uuid, uuid, uuid, uuid, uuid, uuid, text, integer, timestamptz, text, numeric, text, numeric, text, jsonb) from public, anon, authenticated;
grant execute on function private.prices_of(uuid, text, text, text, timestamptz), private.price_of(uuid, text, text, text, text, timestamptz),
  private.complete_agent_sms(),
  private.write_agent_sms(uuid, text, text, text, text, uuid, uuid, uuid, uuid, uuid, uuid, text, integer, timestamptz, text, numeric, text, numeric, text, jsonb) to service_role;
grant execute on function
  private.write_agent_sms(uuid, text, text, text, text, uuid, uuid, uuid, uuid, uuid, uuid, text, integer, timestamptz, text, numeric, text, numeric, text, jsonb) to sms_writer;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121019020'::text $$;

notify pgrst, 'reload schema';
