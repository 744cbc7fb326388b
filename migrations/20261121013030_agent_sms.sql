-- 20261121013030_agent_sms.sql
-- Every SMS as clients count it: what it said, in how many segments, what became of it, what it cost and what it sells for.
-- A table of this name with the first pricing model (provider_cost + voipia_margin = billed_cost) is taken over, to the last decimal:
-- cost is the provider's cost, revenue what was billed, and the margin is computed from then on. Its own three columns stay as they were
-- and are written no more. Amounts without a currency are in the one of the setting ihuza.first_pricing_currency, else EUR.
-- Safe to run again. Locks only this table. Undo: drop the columns added here, or the table.
create or replace function private.sms_units(p_text text, out encoding text, out units integer, out segments smallint)
language plpgsql immutable parallel safe set search_path = '' as $$
declare
  v_char text;
  v_unit integer;
  v_part integer;
  v_filled integer := 0;
begin
  -- GSM 03.38: the default alphabet without the escape, and the extension table, whose characters take two septets.
  if p_text ~ '^[\n\r\f !-_a-~£¥èéùìòÇØøÅåÆæßÉΔΦΓΛΩΠΨΣΘΞ¤¡ÄÖÑÜ§¿äöñüà€]*$' and position('`' in p_text) = 0 then
    encoding := 'gsm7';
    units := length(p_text) + length(regexp_replace(p_text, '[^\f^{}\\\[~\]|€]', '', 'g'));
    v_part := 153;
    segments := case when units = 0 then 0 when units <= 160 then 1 end;
  else
    encoding := 'ucs2';
    -- UTF-16: a character outside the basic plane, four octets of UTF-8, takes two units.
    units := length(p_text) + length(regexp_replace(p_text, '[\u0001-\uffff]', '', 'g'));
    v_part := 67;
    segments := case when units <= 70 then 1 end;
  end if;
  if segments is not null or p_text is null then
    return;
  end if;
  if units = length(p_text) then
    segments := ceil(units / v_part::numeric);
    return;
  end if;
  -- Packed greedily: no pair is split between two segments.
  segments := 1;
  foreach v_char in array string_to_array(p_text, null) loop
    v_unit := case
      when encoding = 'gsm7' then case when v_char ~ '[\f^{}\\\[~\]|€]' then 2 else 1 end
      when octet_length(v_char) = 4 then 2 else 1 end;
    if v_filled + v_unit > v_part then
      segments := segments + 1;
      v_filled := 0;
    end if;
    v_filled := v_filled + v_unit;
  end loop;
end
$$;
comment on function private.sms_units is
  'Encoding, units and billed segments of a text, for writers that do not say: the rule of shared/core (sms::count), held to it by a test.';

create or replace function private.simple_sms_status(p_status text) returns text
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return case
    -- Our own words (message_delivery_log), as they are written.
    when p_status in ('queued', 'sending', 'unknown') then 'pending'
    when p_status = 'read' then 'delivered'
    when p_status in ('undeliverable', 'expired') then 'failed'
    when p_status = 'suppressed' then 'cancelled'
    else case lower(btrim(p_status))
      when 'sent' then 'sent' when 'submitted' then 'sent' when 'buffered' then 'sent' when 'acceptd' then 'sent' when 'enroute' then 'sent'
      when 'unknown' then 'sent'  -- a network that has lost track of what it took
      when 'deliveredtonetwork' then 'sent' when 'messagewaiting' then 'sent' when 'deliveryuncertain' then 'sent'
      when 'deliverynotificationnotsupported' then 'sent'
      when 'delivered' then 'delivered' when 'delivrd' then 'delivered' when 'success' then 'delivered' when 'read' then 'delivered'
      when 'received' then 'delivered' when 'deliveredtoterminal' then 'delivered'
      when 'failed' then 'failed' when 'undelivered' then 'failed' when 'undeliv' then 'failed' when 'undeliverable' then 'failed'
      when 'rejected' then 'failed' when 'rejectd' then 'failed' when 'deleted' then 'failed' when 'expired' then 'failed'
      when 'absentsubscriber' then 'failed' when 'deliveryimpossible' then 'failed'
      when 'canceled' then 'cancelled' when 'cancelled' then 'cancelled' when 'suppressed' then 'cancelled'
      else 'pending' end
  end;
end
$$;
comment on function private.simple_sms_status is
  'The simple status that a detailed one, ours or a provider''s, comes to; a word that nobody knows is pending, so that it can never hide what is known.';

create or replace function private.simple_sms_rank(p_status text) returns smallint
language plpgsql immutable parallel safe set search_path = '' as $$
begin
  return case p_status when 'pending' then 0 when 'sent' then 1 when 'cancelled' then 2 when 'failed' then 2 when 'delivered' then 3 end::smallint;
end
$$;
comment on function private.simple_sms_rank is 'The higher rank wins: an end beats a beginning, and proof of arrival every report of failure.';

create table if not exists public.agent_sms (
  id uuid constraint agent_sms_pkey primary key default gen_random_uuid()
);
alter table public.agent_sms add column if not exists client_id uuid;
alter table public.agent_sms add column if not exists deployment_id uuid;
alter table public.agent_sms add column if not exists call_id uuid;
alter table public.agent_sms add column if not exists prospect_id uuid;
alter table public.agent_sms add column if not exists sequence_id uuid;
alter table public.agent_sms add column if not exists session_id uuid;
alter table public.agent_sms add column if not exists delivery_id uuid;
alter table public.agent_sms add column if not exists phone_number text;
alter table public.agent_sms add column if not exists message_content text;
alter table public.agent_sms add column if not exists encoding text;
alter table public.agent_sms add column if not exists segments smallint;
alter table public.agent_sms add column if not exists status text not null default 'pending';
alter table public.agent_sms add column if not exists provider text not null default 'twilio';
alter table public.agent_sms add column if not exists provider_status text;
alter table public.agent_sms add column if not exists provider_message_sid text;
alter table public.agent_sms add column if not exists sent_at timestamptz not null default now();
alter table public.agent_sms add column if not exists delivered_at timestamptz;
alter table public.agent_sms add column if not exists failed_at timestamptz;
alter table public.agent_sms add column if not exists replied_at timestamptz;
alter table public.agent_sms add column if not exists failure_reason text;
alter table public.agent_sms add column if not exists unit_cost numeric(12,6);
alter table public.agent_sms add column if not exists cost numeric(12,6);
alter table public.agent_sms add column if not exists cost_currency char(3);
alter table public.agent_sms add column if not exists cost_source text;
alter table public.agent_sms add column if not exists unit_revenue numeric(12,6);
alter table public.agent_sms add column if not exists revenue numeric(12,6);
alter table public.agent_sms add column if not exists revenue_currency char(3);
alter table public.agent_sms add column if not exists revenue_source text;
alter table public.agent_sms add column if not exists fx_rate numeric(18,9);
alter table public.agent_sms add column if not exists fx_date date;
alter table public.agent_sms add column if not exists metadata jsonb not null default '{}';
alter table public.agent_sms add column if not exists created_at timestamptz not null default now();
alter table public.agent_sms add column if not exists updated_at timestamptz not null default now();

do $$
declare
  v_currency text := coalesce(nullif(current_setting('ihuza.first_pricing_currency', true), ''), 'EUR');
  v_column text;
begin
  perform private.require_columns('public.agent_sms', '{
    "id": "uuid", "client_id": "uuid", "deployment_id": "uuid", "call_id": "uuid", "prospect_id": "uuid", "sequence_id": "uuid",
    "session_id": "uuid", "delivery_id": "uuid", "phone_number": "text", "message_content": "text", "encoding": "text", "segments": "smallint",
    "status": "text", "provider": "text", "provider_status": "text", "provider_message_sid": "text", "sent_at": "timestamp with time zone",
    "delivered_at": "timestamp with time zone", "failed_at": "timestamp with time zone", "replied_at": "timestamp with time zone",
    "failure_reason": "text", "unit_cost": "numeric(12,6)", "cost": "numeric(12,6)", "cost_currency": "character(3)", "cost_source": "text",
    "unit_revenue": "numeric(12,6)", "revenue": "numeric(12,6)", "revenue_currency": "character(3)", "revenue_source": "text",
    "fx_rate": "numeric(18,9)", "fx_date": "date", "metadata": "jsonb", "created_at": "timestamp with time zone",
    "updated_at": "timestamp with time zone"}');
  if exists (select from pg_catalog.pg_attribute where attrelid = 'public.agent_sms'::regclass and attname = 'provider_cost' and not attisdropped) then
    if exists (select from pg_catalog.pg_attribute where attrelid = 'public.agent_sms'::regclass and attname = 'currency' and not attisdropped) then
      execute format('update public.agent_sms set cost_currency = currency, revenue_currency = currency
                       where currency ~ ''^[A-Z]{3}$'' and cost is null and revenue is null and cost_currency is null');
    end if;
    -- An amount of more than six decimals cannot be kept exactly: better no migration than a rounded bill.
    if exists (select from public.agent_sms s where (to_jsonb(s) ->> 'provider_cost')::numeric <> round((to_jsonb(s) ->> 'provider_cost')::numeric, 6)
                                                 or (to_jsonb(s) ->> 'billed_cost')::numeric <> round((to_jsonb(s) ->> 'billed_cost')::numeric, 6)) then
      raise exception 'public.agent_sms has amounts with more than six decimals, which would be rounded'
        using hint = 'Round them as your bills did, then migrate again.';
    end if;
    update public.agent_sms s
       set cost = (to_jsonb(s) ->> 'provider_cost')::numeric,
           cost_currency = case when to_jsonb(s) ->> 'provider_cost' is not null then coalesce(s.cost_currency, v_currency) end,
           cost_source = case when to_jsonb(s) ->> 'provider_cost' is not null then 'first_pricing' end,
           revenue = (to_jsonb(s) ->> 'billed_cost')::numeric,
           revenue_currency = case when to_jsonb(s) ->> 'billed_cost' is not null then coalesce(s.revenue_currency, v_currency) end,
           revenue_source = case when to_jsonb(s) ->> 'billed_cost' is not null then 'first_pricing' end
     where s.cost_source is null and s.revenue_source is null
       and (to_jsonb(s) ->> 'provider_cost' is not null or to_jsonb(s) ->> 'billed_cost' is not null);
    -- Written no more, so they may not be demanded.
    foreach v_column in array array['provider_cost', 'voipia_margin', 'billed_cost'] loop
      if exists (select from pg_catalog.pg_attribute where attrelid = 'public.agent_sms'::regclass and attname = v_column and not attisdropped and attnotnull) then
        execute format('alter table public.agent_sms alter column %I drop not null', v_column);
      end if;
    end loop;
  end if;
  -- The status of before may be a detailed one.
  if exists (select from public.agent_sms where status not in ('pending', 'sent', 'delivered', 'failed', 'cancelled')) then
    update public.agent_sms set provider_status = coalesce(provider_status, status), status = private.simple_sms_status(status)
     where status not in ('pending', 'sent', 'delivered', 'failed', 'cancelled');
  end if;
  update public.agent_sms s set client_id = coalesce((select d.client_id from public.agent_deployments d where d.id = s.deployment_id), private.default_client_id())
   where s.client_id is null;
  update public.agent_sms s set deployment_id = private.deployment_of(s.client_id, 'sms', null, null) where s.deployment_id is null;
  update public.agent_sms s set encoding = coalesce(s.encoding, u.encoding), segments = coalesce(s.segments, greatest(u.segments, 1))
    from public.agent_sms t, lateral private.sms_units(t.message_content) u
   where t.id = s.id and (s.segments is null or s.encoding is null) and s.message_content is not null;
end
$$;
alter table public.agent_sms add column if not exists margin numeric(12,6) generated always as (
  case when cost_currency = revenue_currency then revenue - cost else revenue - round(cost * fx_rate, 6) end) stored;

do $$
declare
  v_rule record;
begin
  perform private.require_columns('public.agent_sms', '{"margin": "numeric(12,6)"}');
  alter table public.agent_sms alter column client_id set not null, alter column deployment_id set not null, alter column status set default 'pending';
  for v_rule in
    select * from (values
      ('agent_sms_client_id_fkey', 'foreign key (client_id) references public.clients (id) not valid'),
      ('agent_sms_deployment_id_fkey', 'foreign key (deployment_id) references public.agent_deployments (id) not valid'),
      ('agent_sms_call_id_fkey', 'foreign key (call_id) references public.agent_calls (id) on delete set null not valid'),
      ('agent_sms_prospect_id_fkey', 'foreign key (prospect_id) references public.prospects (id) on delete set null not valid'),
      ('agent_sms_sequence_id_fkey', 'foreign key (sequence_id) references public.sequences (id) on delete set null not valid'),
      ('agent_sms_session_id_fkey', 'foreign key (session_id) references public.omnichannel_sessions (id) on delete set null not valid'),
      ('agent_sms_delivery_id_fkey', 'foreign key (delivery_id) references public.message_delivery_log (id) on delete set null not valid'),
      ('agent_sms_phone_number_is_e164', 'check (private.is_e164(phone_number)) not valid'),
      ('agent_sms_encoding_is_known', 'check (encoding in (''gsm7'', ''ucs2'')) not valid'),
      ('agent_sms_segments_are_positive', 'check (segments > 0) not valid'),
      ('agent_sms_status_is_known', 'check (status in (''pending'', ''sent'', ''delivered'', ''failed'', ''cancelled'')) not valid'),
      ('agent_sms_cost_has_currency', 'check ((cost is null) = (cost_currency is null)) not valid'),
      ('agent_sms_revenue_has_currency', 'check ((revenue is null) = (revenue_currency is null)) not valid'),
      ('agent_sms_fx_rate_has_date', 'check ((fx_rate is null) = (fx_date is null)) not valid'),
      ('agent_sms_metadata_is_object', 'check (jsonb_typeof(metadata) = ''object'') not valid')
    ) x (name, rule)
  loop
    if not exists (select from pg_catalog.pg_constraint where conrelid = 'public.agent_sms'::regclass and conname = v_rule.name) then
      execute format('alter table public.agent_sms add constraint %I %s', v_rule.name, v_rule.rule);
    end if;
    perform private.validate_where_kept('public.agent_sms', array[v_rule.name]);
  end loop;
end
$$;
create unique index if not exists agent_sms_provider_message_once on public.agent_sms (provider_message_sid, provider) where provider_message_sid is not null;
create unique index if not exists agent_sms_delivery_once on public.agent_sms (delivery_id) where delivery_id is not null;
create index if not exists idx_agent_sms_deployment_sent on public.agent_sms (deployment_id, sent_at desc);
create index if not exists idx_agent_sms_client_sent on public.agent_sms (client_id, sent_at desc);
create index if not exists idx_agent_sms_call on public.agent_sms (call_id) where call_id is not null;
create index if not exists idx_agent_sms_prospect on public.agent_sms (prospect_id) where prospect_id is not null;
create index if not exists idx_agent_sms_sequence on public.agent_sms (sequence_id) where sequence_id is not null;
create index if not exists idx_agent_sms_session on public.agent_sms (session_id) where session_id is not null;
create index if not exists idx_agent_sms_phone on public.agent_sms (client_id, phone_number, sent_at desc) where phone_number is not null;
comment on table public.agent_sms is 'Every SMS to a person as clients count it: ours, written with its delivery, and those that others send and write here.';
comment on column public.agent_sms.client_id is 'The deployment''s; may be left out by writers.';
comment on column public.agent_sms.deployment_id is 'Whom it counts for; left out by a writer that names the client: the client''s default.';
comment on column public.agent_sms.call_id is 'The call that it follows; null: stands alone.';
comment on column public.agent_sms.delivery_id is 'Its delivery, where we sent it ourselves; null: somebody else did.';
comment on column public.agent_sms.phone_number is 'Of the person, E.164; null: erased.';
comment on column public.agent_sms.message_content is 'As it was sent; null: erased.';
comment on column public.agent_sms.encoding is 'gsm7 or ucs2.';
comment on column public.agent_sms.segments is 'Billed segments: as the writer says, else counted from the text.';
comment on column public.agent_sms.status is 'For figures: pending, sent, delivered, failed, cancelled (never left us). Follows provider_status and never goes back.';
comment on column public.agent_sms.provider is 'mtn, twilio, africas_talking.';
comment on column public.agent_sms.provider_status is 'For looking closer: the word of the provider, or of our delivery log.';
comment on column public.agent_sms.provider_message_sid is 'The provider''s id of the message, unique per provider.';
comment on column public.agent_sms.sent_at is 'When the provider had it; until then when it was written. What every period goes by.';
comment on column public.agent_sms.replied_at is 'When the person first answered, before another message was sent to them; null: not yet.';
comment on column public.agent_sms.failure_reason is 'Code or words of the provider.';
comment on column public.agent_sms.unit_cost is 'Price of one segment on our side, by the list of the day it was written; stays when lists change.';
comment on column public.agent_sms.cost is 'What the provider charges, in cost_currency; as it says itself, else segments times unit_cost. Nothing for what no provider took.';
comment on column public.agent_sms.cost_source is 'price_list, provider, writer, first_pricing (taken over from provider_cost).';
comment on column public.agent_sms.unit_revenue is 'Price of one segment for the client, by the list of the day it was written.';
comment on column public.agent_sms.revenue is 'What the client pays, in revenue_currency: segments times unit_revenue, unless a writer says. Nothing for what no provider took.';
comment on column public.agent_sms.revenue_source is 'price_list, writer, first_pricing (taken over from billed_cost).';
comment on column public.agent_sms.revenue_currency is 'ISO 4217; that of the margin too.';
comment on column public.agent_sms.fx_rate is 'What one unit of cost_currency was worth in revenue_currency; null: the same currency, or no rate known.';
comment on column public.agent_sms.fx_date is 'Since when that rate held.';
comment on column public.agent_sms.margin is 'revenue - cost, in revenue_currency; null until both are known, and a rate where the currencies differ.';
comment on column public.agent_sms.metadata is 'The writer''s own; nothing here reads it.';

-- Prices are looked up once, when the row is written. From then on the row alone says what a segment costs.
create or replace function private.price_agent_sms(p public.agent_sms) returns public.agent_sms
language plpgsql stable set search_path = '' as $$
declare
  -- Nothing is due for what no provider took.
  v_taken boolean := p.status in ('sent', 'delivered') or p.status in ('pending', 'failed') and p.provider_message_sid is not null;
  v_units integer := case when v_taken or p.status = 'pending' then p.segments else 0 end;
begin
  if p.unit_cost is not null and coalesce(p.cost_source, 'price_list') = 'price_list' then
    p.cost := p.unit_cost * v_units;
    p.cost_source := case when p.cost is not null then 'price_list' end;
  end if;
  if p.unit_revenue is not null and coalesce(p.revenue_source, 'price_list') = 'price_list' then
    p.revenue := p.unit_revenue * v_units;
    p.revenue_source := case when p.revenue is not null then 'price_list' end;
  end if;
  if p.cost is null then
    p.cost_currency := null;
  end if;
  if p.revenue is null then
    p.revenue_currency := null;
  end if;
  if p.cost_currency = p.revenue_currency or p.cost_currency is null or p.revenue_currency is null then
    p.fx_rate := null;
    p.fx_date := null;
  elsif p.fx_rate is null then
    select f.rate, f.rate_date into p.fx_rate, p.fx_date from private.fx_rate_of(p.cost_currency, p.revenue_currency, p.sent_at) f;
  end if;
  return p;
end
$$;
comment on function private.price_agent_sms is 'What an SMS costs and sells for, from its own prices a segment, and the rate between the two.';

create or replace function private.complete_agent_sms() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_client_id uuid;
  v_units record;
  v_price record;
begin
  if tg_op = 'INSERT' then
    if new.deployment_id is null then
      new.deployment_id := private.deployment_of(new.client_id, 'sms', null, null);
    end if;
    select d.client_id into v_client_id from public.agent_deployments d where d.id = new.deployment_id;
    if new.client_id is not null and v_client_id <> new.client_id then
      raise exception using errcode = 'PT409', message = 'deployment_of_another_client', hint = 'Leave client_id out: it is the deployment''s.';
    end if;
    new.client_id := v_client_id;
    new.phone_number := coalesce(private.e164_of(new.phone_number), new.phone_number);
    if new.segments is null or new.encoding is null then
      select u.encoding, u.segments into v_units from private.sms_units(new.message_content) u;
      new.encoding := coalesce(new.encoding, v_units.encoding);
      new.segments := coalesce(new.segments, greatest(v_units.segments, 1));
    end if;
    if new.cost is not null then
      new.cost_source := coalesce(new.cost_source, 'writer');
    else
      select p.price, p.currency into v_price from private.price_of(new.client_id, 'cost', new.provider, 'segment', new.phone_number, new.sent_at) p;
      new.unit_cost := v_price.price;
      new.cost_currency := v_price.currency;
    end if;
    if new.revenue is not null then
      new.revenue_source := coalesce(new.revenue_source, 'writer');
    else
      select p.price, p.currency into v_price from private.price_of(new.client_id, 'revenue', new.provider, 'segment', new.phone_number, new.sent_at) p;
      new.unit_revenue := v_price.price;
      new.revenue_currency := v_price.currency;
    end if;
  else
    if new.cost is distinct from old.cost and new.cost_source is not distinct from old.cost_source then
      new.cost_source := case when new.cost is not null then 'writer' end;
    end if;
    if new.revenue is distinct from old.revenue and new.revenue_source is not distinct from old.revenue_source then
      new.revenue_source := case when new.revenue is not null then 'writer' end;
    end if;
    if (new.cost_currency, new.revenue_currency) is distinct from (old.cost_currency, old.revenue_currency)
       and new.fx_rate is not distinct from old.fx_rate then
      new.fx_rate := null;
      new.fx_date := null;
    end if;
  end if;
  -- A writer that knows the detailed status need not know ours.
  if new.provider_status is not null and (tg_op = 'INSERT' or new.provider_status is distinct from old.provider_status)
     and private.simple_sms_rank(private.simple_sms_status(new.provider_status)) > private.simple_sms_rank(new.status) then
    new.status := private.simple_sms_status(new.provider_status);
  end if;
  if tg_op = 'UPDATE' and new.status is distinct from old.status
     and private.simple_sms_rank(new.status) <= private.simple_sms_rank(old.status)
     or tg_op = 'UPDATE' and new.status = old.status and new.provider_status is distinct from old.provider_status
        and private.simple_sms_rank(private.simple_sms_status(new.provider_status)) < private.simple_sms_rank(old.status) then
    -- Late news: what is known already stays, with the times and the reason that belong to it.
    new.status := old.status;
    new.provider_status := old.provider_status;
    new.failure_reason := old.failure_reason;
    new.failed_at := old.failed_at;
    new.delivered_at := old.delivered_at;
  end if;
  if new.status = 'delivered' then
    new.delivered_at := coalesce(new.delivered_at, now());
  elsif new.status = 'failed' then
    new.failed_at := coalesce(new.failed_at, now());
  end if;
  return private.price_agent_sms(new);
end
$$;
comment on function private.complete_agent_sms is
  'Trigger: what a plain INSERT or UPDATE leaves out (client, segments, simple status, prices), and the rule that a status never goes back.';
drop trigger if exists agent_sms_complete on public.agent_sms;
create trigger agent_sms_complete before insert or update on public.agent_sms for each row execute function private.complete_agent_sms();
drop trigger if exists agent_sms_touch on public.agent_sms;
create trigger agent_sms_touch before update on public.agent_sms for each row execute function private.touch_updated_at();

alter table public.agent_sms enable row level security;
drop policy if exists agent_sms_select on public.agent_sms;
create policy agent_sms_select on public.agent_sms for select to authenticated
  using (client_id = any (array(select private.my_client_ids())));
revoke all on public.agent_sms from public, anon, authenticated;
grant select on public.agent_sms to authenticated;
grant select, insert, update, delete on public.agent_sms to service_role;
revoke execute on function private.sms_units(text), private.simple_sms_status(text), private.simple_sms_rank(text),
  private.price_agent_sms(public.agent_sms), private.complete_agent_sms() from public, anon, authenticated;
grant execute on function private.sms_units(text), private.simple_sms_status(text), private.simple_sms_rank(text),
  private.price_agent_sms(public.agent_sms), private.complete_agent_sms() to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013030'::text $$;

notify pgrst, 'reload schema';
