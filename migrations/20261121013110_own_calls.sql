-- 20261121013110_own_calls.sql
-- Every ended call of ours is in agent_calls, in the transaction that ends it: whose, of which deployment, how long, what it cost, what it sells for.
-- Calls that ended before are taken over.
-- Safe to run again. Locks voice_calls for a moment (a trigger). Undo: drop the trigger, the index and the functions.

create or replace function private.voice_call_amounts(
  p_call public.voice_calls, p_phone text, p_at timestamptz,
  out cost numeric, out cost_currency char(3), out revenue numeric, out revenue_currency char(3), out fx_rate numeric, out fx_date date
) language plpgsql stable set search_path = '' as $$
declare
  v_seconds integer := case when p_call.answered_at is null and p_call.status <> 'completed' then 0
    else coalesce(p_call.duration_seconds, extract(epoch from p_call.ended_at - coalesce(p_call.answered_at, p_at))::integer, 0) end;
  -- Begun minutes, as trunks bill them.
  v_minutes integer := (greatest(v_seconds, 0) + 59) / 60;
  v_trunk record;
  v_price record;
  v_rate record;
begin
  select p.price, p.currency into v_trunk from private.price_of(p_call.client_id, 'cost', coalesce(p_call.origin, 'any'), 'minute', p_phone, p_at) p;
  cost := v_minutes * v_trunk.price;
  cost_currency := v_trunk.currency;
  if p_call.cost is not null then
    if cost is null or cost = 0 then
      cost := p_call.cost;
      cost_currency := p_call.cost_currency;
    elsif p_call.cost_currency = cost_currency then
      cost := cost + p_call.cost;
    else
      select f.rate, f.rate_date into v_rate from private.fx_rate_of(p_call.cost_currency, cost_currency, p_at) f;
      -- Part of a cost would be a wrong one.
      cost := cost + round(p_call.cost * v_rate.rate, 6);
    end if;
  end if;
  if cost is null then
    cost_currency := null;
  end if;
  select p.price, p.currency into v_price from private.price_of(p_call.client_id, 'revenue', coalesce(p_call.origin, 'any'), 'minute', p_phone, p_at) p;
  revenue := v_minutes * v_price.price;
  revenue_currency := v_price.currency;
  if cost_currency <> revenue_currency then
    select f.rate, f.rate_date into fx_rate, fx_date from private.fx_rate_of(cost_currency, revenue_currency, p_at) f;
  end if;
end
$$;
comment on function private.voice_call_amounts is
  'What a call costs and sells for by the lists of the day it began: begun minutes of the trunk, free where no list has a price, and the model. Null cost: two currencies and no rate.';

create or replace function private.own_deployment(p_client_id uuid, p_channel text, p_address text, p_agent_id uuid) returns uuid
language plpgsql set search_path = '' as $$
declare
  v_id uuid := private.deployment_of(p_client_id, p_channel, p_address, p_agent_id);
begin
  if v_id is null then
    -- Somebody took the default away. No message and no call may fail for that.
    insert into public.agent_deployments (client_id, name, is_default) values (p_client_id, 'default', true)
    on conflict do nothing;
    update public.agent_deployments set is_default = true
     where client_id = p_client_id and name = 'default' and not is_default
       and not exists (select from public.agent_deployments d where d.client_id = p_client_id and d.is_default);
    v_id := private.deployment_of(p_client_id, p_channel, p_address, p_agent_id);
  end if;
  return v_id;
end
$$;
comment on function private.own_deployment is 'private.deployment_of, and a default where a client has lost its own.';

create or replace function private.count_voice_call(p_call public.voice_calls) returns void
language plpgsql set search_path = '' as $$
declare
  v_at timestamptz := coalesce(p_call.started_at, p_call.answered_at, p_call.created_at);
  v_person text := case p_call.direction when 'outbound' then p_call.to_number else p_call.from_number end;
  v_ours text := case p_call.direction when 'outbound' then p_call.from_number else p_call.to_number end;
  v_phone text := coalesce(private.e164_of(v_person), v_person);
  v_amounts record;
  v_id uuid;
begin
  select a.* into v_amounts from private.voice_call_amounts(p_call, v_phone, v_at) a;
  update public.agent_calls c
     set session_id = p_call.session_id, phone_number = v_phone, status = p_call.status, started_at = v_at, answered_at = p_call.answered_at,
         ended_at = p_call.ended_at, duration_seconds = p_call.duration_seconds, cost = v_amounts.cost, cost_currency = v_amounts.cost_currency,
         revenue = v_amounts.revenue, revenue_currency = v_amounts.revenue_currency, fx_rate = v_amounts.fx_rate, fx_date = v_amounts.fx_date
   where c.voice_call_id = p_call.id;
  if found then
    return;
  end if;
  insert into public.agent_calls
    (client_id, deployment_id, voice_call_id, session_id, prospect_id, direction, phone_number, status, started_at, answered_at, ended_at,
     duration_seconds, cost, cost_currency, revenue, revenue_currency, fx_rate, fx_date)
  values
    (p_call.client_id,
     private.own_deployment(p_call.client_id, case when p_call.origin = 'whatsapp' and exists (
         select from public.client_numbers n where n.channel = 'whatsapp' and n.address = v_ours) then 'whatsapp' else 'voice' end, v_ours, p_call.agent_id),
     p_call.id, p_call.session_id,
     (select r.id from public.prospects r where r.client_id = p_call.client_id and r.phone_number = v_phone),
     p_call.direction, v_phone, p_call.status, v_at, p_call.answered_at, p_call.ended_at, p_call.duration_seconds, v_amounts.cost,
     v_amounts.cost_currency, v_amounts.revenue, v_amounts.revenue_currency, v_amounts.fx_rate, v_amounts.fx_date)
  on conflict (voice_call_id) do nothing
  returning id into v_id;
  -- What was sent while it went on.
  update public.agent_sms s set call_id = v_id
    from public.message_delivery_log l
   where l.call_id = p_call.id and s.delivery_id = l.id and s.call_id is null and v_id is not null;
end
$$;
comment on function private.count_voice_call is 'Writes an ended call of ours into agent_calls, or brings its row up to date.';

create or replace function private.mirror_voice_call() returns trigger
language plpgsql set search_path = '' as $$
begin
  -- Who is erased keeps what it cost; private.erase_sms_and_calls takes the rest away.
  if new.erased_at is null then
    perform private.count_voice_call(new);
  end if;
  return null;
end
$$;
comment on function private.mirror_voice_call is 'Trigger: an ended call is in agent_calls with the transaction that ends it, and follows what is told of it later.';

drop trigger if exists voice_calls_count_new on public.voice_calls;
create trigger voice_calls_count_new after insert on public.voice_calls
  for each row when (new.ended_at is not null) execute function private.mirror_voice_call();
drop trigger if exists voice_calls_count on public.voice_calls;
create trigger voice_calls_count after update on public.voice_calls
  for each row when (new.ended_at is not null and (
    old.ended_at, old.answered_at, old.started_at, old.duration_seconds, old.status, old.cost, old.cost_currency, old.session_id, old.from_number, old.to_number)
    is distinct from (
    new.ended_at, new.answered_at, new.started_at, new.duration_seconds, new.status, new.cost, new.cost_currency, new.session_id, new.from_number, new.to_number))
  execute function private.mirror_voice_call();

-- Calls whose trunk and model are paid in two currencies, and others of which nothing is known: private.fill_margins looks through them.
create index if not exists idx_agent_calls_without_cost on public.agent_calls (started_at) where cost is null and voice_call_id is not null;
-- A person is looked for by number when they are to be forgotten.
create index if not exists idx_agent_calls_phone on public.agent_calls (client_id, phone_number) where phone_number is not null;

do $$
declare
  v_call public.voice_calls;
begin
  for v_call in
    select c.* from public.voice_calls c
     where c.ended_at is not null and not exists (select from public.agent_calls a where a.voice_call_id = c.id)
  loop
    perform private.count_voice_call(v_call);
  end loop;
end
$$;

revoke execute on function private.own_deployment(uuid, text, text, uuid), private.voice_call_amounts(public.voice_calls, text, timestamptz), private.count_voice_call(public.voice_calls),
  private.mirror_voice_call() from public, anon, authenticated;
grant execute on function private.own_deployment(uuid, text, text, uuid), private.voice_call_amounts(public.voice_calls, text, timestamptz), private.count_voice_call(public.voice_calls),
  private.mirror_voice_call() to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121013110'::text $$;

notify pgrst, 'reload schema';
