include $(sort $(wildcard $(BR2_EXTERNAL_PGHOARD_APPLIANCE_PATH)/package/*/*.mk))
