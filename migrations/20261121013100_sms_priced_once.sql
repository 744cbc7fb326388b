-- 20261121013100_sms_priced_once.sql
-- What an SMS costs changes only with what its price depends on: erasing its provider's id, or any other update, leaves the amounts alone.
-- A rate between currencies fills the margins that wait for it. Rows written in the words of the first pricing model are still taken.
-- Safe to run again. Locks agent_sms, agent_calls and fx_rates for a moment. Undo: drop the triggers, the two indexes and the functions added here,
-- and apply private.price_agent_sms and private.complete_agent_sms of 20261121013030.

create or replace function private.price_agent_sms(p public.agent_sms) returns public.agent_sms
language plpgsql stable set search_path = '' as $$
declare
  -- Nothing is due for what no provider took; what waits is counted as if it were sent.
  v_units integer := case
    when p.status in ('pending', 'sent', 'delivered') or p.status = 'failed' and p.provider_message_sid is not null then p.segments else 0 end;
begin
  if p.unit_cost is not null and coalesce(p.cost_source, 'price_list') = 'price_list' then
    p.cost := p.unit_cost * v_units;
    p.cost_source := case when p.cost is not null then 'price_list' end;
  end if;
  if p.unit_revenue is not null and coalesce(p.revenue_source, 'price_list') = 'price_list' then
    p.revenue := p.unit_revenue * v_units;
    p.revenue_source := case when p.revenue is not null then 'price_list' end;
  end if;
  return p;
end
$$;
comment on function private.price_agent_sms is 'What an SMS costs and sells for by its own prices a segment, unless somebody said the amount itself.';

create or replace function private.complete_agent_sms() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_client_id uuid;
  v_units record;
  v_price record;
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
    if coalesce(new.cost_source, 'price_list') = 'price_list' then
      select p.price, p.currency into v_price from private.price_of(new.client_id, 'cost', new.provider, 'segment', new.phone_number, new.sent_at) p;
      new.unit_cost := v_price.price;
      new.cost := null;
      new.cost_currency := v_price.currency;
    end if;
    if coalesce(new.revenue_source, 'price_list') = 'price_list' then
      select p.price, p.currency into v_price from private.price_of(new.client_id, 'revenue', new.provider, 'segment', new.phone_number, new.sent_at) p;
      new.unit_revenue := v_price.price;
      new.revenue := null;
      new.revenue_currency := v_price.currency;
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
comment on function private.complete_agent_sms is
  'Trigger: what a plain INSERT or UPDATE leaves out (client, segments, simple status, prices), and the rule that a status never goes back.';

-- Of rows that wait for a rate there are few; the index holds only them.
create index if not exists idx_agent_sms_without_rate on public.agent_sms (cost_currency, revenue_currency, sent_at)
  where fx_rate is null and cost_currency <> revenue_currency;
create index if not exists idx_agent_calls_without_rate on public.agent_calls (cost_currency, revenue_currency, started_at)
  where fx_rate is null and cost_currency <> revenue_currency;

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
     and s.sent_at >= v_from and f.rate is not null;
  update public.agent_calls s set fx_rate = f.rate, fx_date = f.rate_date
    from public.agent_calls w, lateral private.fx_rate_of(w.cost_currency, w.revenue_currency, w.started_at) f
   where w.id = s.id and s.fx_rate is null and s.cost_currency <> s.revenue_currency and s.cost_currency = new.base and s.revenue_currency = new.quote
     and s.started_at >= v_from and f.rate is not null;
  -- Calls whose trunk is paid in one currency and whose model in another.
  perform private.count_voice_call(v)
    from public.agent_calls c join public.voice_calls v on v.id = c.voice_call_id
   where c.cost is null and c.voice_call_id is not null and c.started_at >= v_from and v.cost_currency = new.base and v.erased_at is null;
  return null;
end
$$;
comment on function private.fill_margins is 'Trigger: a new rate gives the margins that had to wait for it. Those that have one keep it, also when a rate is corrected.';
drop trigger if exists fx_rates_fill_margins on public.fx_rates;
create trigger fx_rates_fill_margins after insert or update on public.fx_rates for each row execute function private.fill_margins();

create or replace function private.take_first_pricing() returns trigger
language plpgsql set search_path = '' as $$
declare
  -- Only where a table of before has these columns is there a trigger that calls this.
  v_row jsonb := to_jsonb(new);
  v_currency text := coalesce(v_row ->> 'currency', nullif(current_setting('ihuza.first_pricing_currency', true), ''), 'EUR');
begin
  if new.cost is null and v_row ->> 'provider_cost' is not null then
    new.cost := (v_row ->> 'provider_cost')::numeric;
    new.cost_currency := coalesce(new.cost_currency, v_currency);
  end if;
  -- What is billed, or its parts, where the table computes it from them.
  if new.revenue is null and coalesce(v_row ->> 'billed_cost', v_row ->> 'voipia_margin') is not null then
    new.revenue := coalesce((v_row ->> 'billed_cost')::numeric, (v_row ->> 'provider_cost')::numeric + (v_row ->> 'voipia_margin')::numeric);
    new.revenue_currency := case when new.revenue is not null then coalesce(new.revenue_currency, v_currency) end;
  end if;
  return new;
end
$$;
comment on function private.take_first_pricing is
  'Trigger, where the table is one of before: provider_cost and billed_cost of a writer that knows only these become cost and revenue.';
drop trigger if exists agent_sms_as_first_pricing on public.agent_sms;
do $$
begin
  if exists (select from pg_catalog.pg_attribute where attrelid = 'public.agent_sms'::regclass and attname = 'provider_cost' and not attisdropped) then
    -- Triggers of one time run by name: this one before agent_sms_complete.
    create trigger agent_sms_as_first_pricing before insert on public.agent_sms
      for each row when (new.provider_cost is not null) execute function private.take_first_pricing();
  end if;
end
$$;

revoke execute on function private.fill_margins(), private.take_first_pricing() from public, anon, authenticated;
grant execute on function private.fill_margins(), private.take_first_pricing() to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013100'::text $$;

notify pgrst, 'reload schema';
