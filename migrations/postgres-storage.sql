-- PostgreSQL only; `redial migrate` applies it after the migrations, and repeating it changes nothing.

-- A delivery's row is rewritten at each claim and each finish: leave room on its page, and vacuum early.
ALTER TABLE deliveries SET (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);
