-- 20261121012610_templates_refused.sql
-- A template that Meta refuses while sending, because it is paused (132015) or disabled (132016), is not sent by any more, and an
-- alert says so: the webhook about templates may be late, or not be subscribed to.
-- Safe to run again. Locks message_templates and message_status_events for a moment. Undo: drop the trigger and apply templates_of of
-- 20261121012402 again.

do $$
begin
  if not exists (select from pg_catalog.pg_constraint k where k.conrelid = 'public.message_templates'::regclass
                  and k.conname = 'message_templates_source_is_known' and pg_catalog.pg_get_constraintdef(k.oid) like '%refusal%') then
    alter table public.message_templates drop constraint if exists message_templates_source_is_known;
    alter table public.message_templates add constraint message_templates_source_is_known check (source in ('operator', 'webhook', 'refusal'));
  end if;
end
$$;
comment on column public.message_templates.source is
  'Who wrote last: operator, webhook; refusal: learnt from a message that Meta refused. A pause learnt so ends after six hours, when one message tries again.';

create or replace function private.templates_of(p_client_id uuid) returns jsonb
language plpgsql stable set search_path = '' as $$
begin
  return coalesce((
    select jsonb_agg(jsonb_build_object('name', x.name, 'language', x.language, 'category', x.category, 'status', x.status) order by x.name, x.language)
      from (
        select t.name, t.language, t.category,
               -- Meta's own word ends a pause. Learnt from a refusal it ends by itself: Meta pauses for three hours, then for six.
               case when t.source <> 'refusal' or t.status <> 'paused' or t.status_at > now() - interval '6 hours' then t.status end as status
          from public.message_templates t
         where t.client_id = p_client_id
            -- One account may send for several clients: what is said of it counts for all that have no row of their own.
            or (t.client_id = private.default_client_id() and not exists (
                  select from public.message_templates o where o.client_id = p_client_id and o.name = t.name and o.language = t.language))
         -- A claim stays small. Whatever Meta spoke of last is among them.
         order by t.updated_at desc limit 100
      ) x), '[]');
end
$$;

create or replace function private.learn_template_refusal() returns trigger
language plpgsql set search_path = '' as $$
declare
  v_status text := case new.error_code when '132016' then 'disabled' else 'paused' end;
  v_name text;
  v_language text;
  v_client_id uuid;
  v_old public.message_templates;
begin
  select l.payload ->> 'name', l.payload ->> 'language',
         -- The row that the message went by: the client's own, else that of the account.
         case when exists (select from public.message_templates t where t.client_id = l.client_id
                            and t.name = l.payload ->> 'name' and t.language = l.payload ->> 'language')
           then l.client_id else private.client_of_address('whatsapp', l.sender) end
    into v_name, v_language, v_client_id
    from public.message_delivery_log l
   where l.id = new.delivery_id and l.channel = 'whatsapp' and l.direction = 'outbound' and l.payload ->> 'kind' = 'template';
  -- What the table could not hold was no template that Meta knows.
  if v_name is null or v_language is null or v_name !~ '^[a-z0-9_]+$' or length(v_name) > 512 or v_language !~ '^[A-Za-z0-9_]{2,16}$' then
    return null;
  end if;
  insert into public.message_templates (client_id, name, language, source) values (v_client_id, v_name, v_language, 'refusal')
  on conflict (client_id, name, language) do nothing;
  select * into strict v_old from public.message_templates t
   where t.client_id = v_client_id and t.name = v_name and t.language = v_language for no key update;
  if not private.is_newer(new.occurred_at, v_status, v_old.status_at, v_old.status) or v_old.status = 'disabled' and v_status = 'paused' then
    return null;
  end if;
  update public.message_templates
     set status = v_status, status_at = new.occurred_at,
         -- What Meta itself has said does not end by itself.
         source = case when v_old.status = v_status then v_old.source else 'refusal' end
   where id = v_old.id;
  if v_old.status is distinct from v_status or v_old.status_at < new.occurred_at - interval '6 hours' then
    perform private.raise_alert('template_status', 'warning', 'template_status:' || v_client_id || ':' || v_name || ':' || v_language,
      format('Meta refuses the template %s (%s): it is %s.', v_name, v_language, v_status),
      jsonb_build_object('name', v_name, 'language', v_language, 'status', v_status), v_client_id);
  end if;
  return null;
end
$$;
comment on function private.learn_template_refusal is
  'Trigger: Meta refused a message because its template is paused or disabled. As if it had told so itself, but for the end of a pause.';

drop trigger if exists message_status_events_learn_template on public.message_status_events;
-- At the end of the transaction: templates and alerts are locked after all that the transaction locks besides.
create constraint trigger message_status_events_learn_template after insert or update of delivery_id on public.message_status_events
  deferrable initially deferred
  for each row when (new.error_code in ('132015', '132016') and new.delivery_id is not null) execute function private.learn_template_refusal();

revoke execute on function private.learn_template_refusal(), private.templates_of(uuid) from public, anon, authenticated;
grant execute on function private.learn_template_refusal(), private.templates_of(uuid) to service_role;

create or replace function private.schema_version() returns text
language sql immutable parallel safe set search_path = '' as $$ select '20261121012610'::text $$;

notify pgrst, 'reload schema';
