create index if not exists device_transitions_cohort_idx on fleet.device_transitions (cohort, position, transition_id);
comment on index fleet.device_transitions_cohort_idx is 'The feed of a cohort.';

drop index if exists fleet.webhook_deliveries_due_idx;
create index if not exists webhook_deliveries_next_idx on fleet.webhook_deliveries (webhook_id, next_attempt_at, delivery_id)
  where state = 'pending';
comment on index fleet.webhook_deliveries_next_idx is 'What is due, in the order in which it is sent.';
create index if not exists webhook_deliveries_leased_idx on fleet.webhook_deliveries (webhook_id)
  where state = 'pending' and lease_owner is not null;
comment on index fleet.webhook_deliveries_leased_idx is 'What is being sent.';
create index if not exists webhook_deliveries_trouble_idx on fleet.webhook_deliveries (webhook_id, delivery_id) where is_open;
comment on index fleet.webhook_deliveries_trouble_idx is 'The troubles that last, which reminders tell again.';
create index if not exists webhook_deliveries_webhook_idx on fleet.webhook_deliveries (webhook_id);
comment on index fleet.webhook_deliveries_webhook_idx is 'What goes with a webhook that is removed.';

-- Functions, procedures, views

--!include transitions/transitions_after.sql
--!include webhooks/get_webhook.sql
--!include webhooks/remove_webhook.sql
--!include webhooks/end_trouble.sql
--!include webhooks/queue_transition.sql
--!include webhooks/queue_messages.sql
--!include webhooks/remind_webhooks.sql
--!include webhooks/replay_webhook.sql
--!include webhooks/claim_deliveries.sql
--!include webhooks/record_delivery.sql
--!include webhooks/fail_delivery.sql
--!include setup/grants.sql
